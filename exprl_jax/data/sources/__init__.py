"""File formats of problems, a file each."""
