"""The configuration of a run: schema.py has every key, load.py reads files."""

from exprl_jax.config.load import by_domain, freeze, load, longest
from exprl_jax.config.paths import resolve
from exprl_jax.config.schema import (
    Calibration,
    Checkpoint,
    Config,
    Credit,
    Data,
    Eval,
    Export,
    Grading,
    Judge,
    JudgeTraining,
    Loss,
    Mesh,
    Model,
    Optim,
    Rollout,
    Rubrics,
    Sample,
    Select,
    Teacher,
)

__all__ = [
    'Calibration', 'Checkpoint', 'Config', 'Credit', 'Data', 'Eval', 'Export',
    'Grading', 'Judge', 'JudgeTraining', 'Loss', 'Mesh', 'Model', 'Optim',
    'Rollout', 'Rubrics', 'Sample', 'Select', 'Teacher', 'by_domain', 'freeze',
    'load', 'longest', 'resolve'
]
