"""Readouts: how a score is read off the judge, one file each.

READOUTS maps config.judge.readout to its entry.
"""

from exprl_jax.judge.readouts.base import (
    DROPPED,
    EMPTY,
    OK,
    OVERLONG,
    REMEDY,
    STATUSES,
    UNREADABLE,
    Judgment,
    Readout,
    weighted,
)
from exprl_jax.runtime import registry

READOUTS: dict[str, Readout] = registry.collect('exprl_jax.judge.readouts',
                                                'READOUTS')

__all__ = [
    'DROPPED', 'EMPTY', 'OK', 'OVERLONG', 'READOUTS', 'REMEDY', 'STATUSES',
    'UNREADABLE', 'Judgment', 'Readout', 'weighted'
]
