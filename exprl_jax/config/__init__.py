"""The configuration: schema.py has every key, loading.py reads and checks."""

from exprl_jax.config.loading import (
    by_domain,
    freeze,
    load,
    longest,
    overlay,
    source,
)
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
    Log,
    Loss,
    Mesh,
    Model,
    Optim,
    Profile,
    Rollout,
    Rubrics,
    Sample,
    Select,
    Teacher,
    Traces,
)

__all__ = [
    'Calibration', 'Checkpoint', 'Config', 'Credit', 'Data', 'Eval', 'Export',
    'Grading', 'Judge', 'JudgeTraining', 'Log', 'Loss', 'Mesh', 'Model',
    'Optim', 'Profile', 'Rollout', 'Rubrics', 'Sample', 'Select', 'Teacher',
    'Traces', 'by_domain', 'freeze', 'load', 'longest', 'overlay', 'resolve',
    'source'
]
