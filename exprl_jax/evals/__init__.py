"""Estimators, held-out problems, comparisons of models."""
