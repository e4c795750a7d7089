"""Rewards: from rollouts to scores."""
