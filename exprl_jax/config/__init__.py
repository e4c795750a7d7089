"""The configuration of a run: schema.py has every key."""

from exprl_jax.config.schema import (
    CHOICES,
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
    Prepare,
    Rollout,
    Sample,
    Select,
    Teacher,
    by_domain,
    freeze,
    judged,
    load,
    longest,
    resolve,
)

__all__ = [
    'CHOICES', 'Calibration', 'Checkpoint', 'Config', 'Credit', 'Data', 'Eval',
    'Export', 'Grading', 'Judge', 'JudgeTraining', 'Loss', 'Mesh', 'Model',
    'Optim', 'Prepare', 'Rollout', 'Sample', 'Select', 'Teacher', 'by_domain',
    'freeze', 'judged', 'load', 'longest', 'resolve'
]
