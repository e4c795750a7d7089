"""ExpRL: exploratory RL mid-training of language models, in JAX for TPUs."""

__version__ = '0.1.0'
