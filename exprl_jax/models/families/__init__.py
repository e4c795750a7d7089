"""Model families, a file each.

A module of this package that has a dict `FAMILIES`, from model_type of
config.json to a `common.Family`, adds its entries; there is no list to extend.
"""

from exprl_jax.models.families.common import Family
from exprl_jax.runtime import registry

FAMILIES: dict[str, Family] = registry.collect('exprl_jax.models.families',
                                               'FAMILIES')
