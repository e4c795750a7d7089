"""Credit, losses and the update."""
