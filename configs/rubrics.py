r"""Has the judge write rubrics for your problems, from their solutions.

  python -m exprl_jax.main --config=configs/rubrics.py \
    --config.judge.init=MODEL --config.data.train=IN.jsonl \
    --config.rubrics.out=OUT.jsonl

After an interruption, the same command writes the missing rubrics. To use them
in a run, set --config.data.rubrics=OUT.jsonl and
--config.judge.reference=rubric (or both), or
--config.judge.judgment=rubric_items.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'rubrics'
  c.seed = 0
  c.judge = ConfigDict(
      dict(init='Qwen/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           max_prompt_tokens=8192, slots=64))
  c.data = ConfigDict(dict(train='/data/train.jsonl', limit=0))
  c.rubrics = ConfigDict(
      dict(out='/data/rubrics.jsonl', max_new_tokens=1024, tries=3))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, rollout_tensor=0))
  return c
