"""The run modes: config.run=X is runs/X.py."""
