r"""Exports a training checkpoint as a Hugging Face directory.

  python -m exprl_jax.main --config=configs/export.py \
    --config.policy.init=WORKDIR --config.export.out=FOLDER

--config.export.step=80 exports an earlier checkpoint than the newest;
--config.export.dtype=float32 stores the master parameters unrounded, which is
the default for merged adapters; --config.export.format=peft stores adapters
alone.
policy.init may also be a model directory, and both paths may be on gs://.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'export'
  c.policy = ConfigDict(dict(init='/runs/exprl_process'))
  c.export = ConfigDict(
      dict(out='/models/exprl_process', step=0, dtype='auto', format='model'))
  return c
