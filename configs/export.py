r"""A Hugging Face directory from a training checkpoint.

  python -m exprl_jax.main --config=configs/export.py \
    --config.policy.init=WORKDIR --config.export.out=FOLDER

--config.export.step=80 takes an earlier checkpoint than the newest,
--config.export.dtype=float32 stores the master parameters as they are.
policy.init may also be a model directory, and both may be on gs://.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'export'
  c.policy = ConfigDict(dict(init='/runs/exprl_process'))
  c.export = ConfigDict(
      dict(out='/models/exprl_process', step=0, dtype='bfloat16'))
  return c
