"""Model families, a file each.

A module of this package that has a dict `FAMILIES`, from model_type of
config.json to a `common.Family`, adds its entries; there is no list to extend.
A dict `TEXT_PARTS`, from the model_type of a multimodal model to a function
that makes a config.json of its text model, does the same.
"""

from collections.abc import Callable

from exprl_jax.models.families.common import Family, Raw
from exprl_jax.runtime import registry

FAMILIES: dict[str, Family] = registry.collect('exprl_jax.models.families',
                                               'FAMILIES')
TEXT_PARTS: dict[str,
                 Callable[[Raw],
                          Raw]] = registry.collect('exprl_jax.models.families',
                                                   'TEXT_PARTS')
