"""Plans of runs: memory by owner and phase, time, and what to change."""
