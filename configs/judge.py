r"""Judges traces, and calibrates the judge.

  python -m exprl_jax.main --config=configs/judge.py \
    --config.judge.init=MODEL --config.judge.template=math \
    --config.judge.max_prompt_tokens=8192 \
    --config.judge.traces=IN.jsonl --workdir=OUT

An input line has `id`, `question`, `solution`, `trace` and optionally
`correct`. Without flags, the config calibrates the shipped tiny judge on
samples of the shipped tiny policy. docs/judge.md explains the report.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'judge'
  c.seed = 0
  c.reward = 'process'  # one score per step; 'outcome': one per trace
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', delimiter='###',
           max_steps=8, max_prompt_tokens=96, readout='direct', traces=''))
  c.data = ConfigDict(dict(train='asset:tiny_problems/test.jsonl'))
  c.rollout = ConfigDict(
      dict(group_size=16, max_prompt_tokens=48, max_new_tokens=48,
           temperature=0.8))
  c.calibration = ConfigDict(
      dict(prefixes=256, continuations=16, readouts=('direct', 'generate')))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, rollout_tensor=0))
  return c
