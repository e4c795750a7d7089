"""Grades final answers (docs/grading.md)."""
