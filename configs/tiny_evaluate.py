r"""Two policies on the held-out problems of the tiny world, side by side.

  python -m exprl_jax.main --config=configs/tiny_evaluate.py \
    --config.eval.models="('WORKDIR', 'WORKDIR@40')"

WORKDIR is that of a run, such as configs/tiny.py has made; @40 its checkpoint
of step 40. It prints pass@1, pass@16 and maj@16 of all of them, the differences
from the shipped policy with paired intervals, how many problems were unlocked
and how many would be by chance, entropy, KL and steps, and writes samples/,
comparison.json and metrics.jsonl into its workdir. docs/evaluation.md says what
the numbers mean. Called again with the same --workdir it samples what is
missing.

As it is, it compares the shipped policy with itself: all differences are 0,
since both have the same draws.

On models that write prose also: --config.eval.behaviours=words, or =judge with
--config.judge.init=MODEL.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'evaluate'
  c.seed = 0
  c.policy = ConfigDict(dict(init='asset:tiny_policy', dtype='float32'))
  c.judge = ConfigDict(dict(delimiter='###'))  # for steps
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=48, max_new_tokens=48, temperature=0.8, top_k=0,
           top_p=1.0, min_p=0.0))
  c.grading = ConfigDict(dict(grader='math'))
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/test.jsonl', limit=0, samples=16,
           ks=(1, 16), models=('asset:tiny_policy',), wave=64, unlocked_k=16,
           unlocked_min=1, diagnose=True, behaviours=''))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, rollout_tensor=0))
  return c
