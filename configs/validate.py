r"""Checks training and evaluation data before a run.

  python -m exprl_jax.main --config=configs/validate.py \
    --config.data.train=TRAIN.jsonl --config.eval.problems=EVAL.jsonl

Prints what it finds by kind, with examples, and fails if training rows have
errors, more than data.max_bad of them, or evaluation problems have any.
docs/validation.md describes the kinds. Set reward and grading as in the run;
with policy.init and judge.init, prompts are held against their budgets.
--config.data.rejects=BAD.jsonl writes the errors.

Without flags, it checks the problems of the tiny world.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'validate'
  c.reward = 'process'
  c.policy = ConfigDict(dict(init=''))
  c.judge = ConfigDict(dict(init='', template='math', max_prompt_tokens=4096))
  c.data = ConfigDict(
      dict(train='asset:tiny_problems/train.jsonl', limit=0, max_bad=0,
           rejects='', contamination='exact', contamination_overlap=0.5))
  c.rollout = ConfigDict(dict(max_prompt_tokens=1024))
  c.grading = ConfigDict(dict(grader='math'))
  c.eval = ConfigDict(dict(problems='', limit=0))
  return c
