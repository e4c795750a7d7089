"""Mesh, programs, checkpoints, metrics: what every run stands on."""
