"""Problems, prompts, tokens: what goes into a run."""
