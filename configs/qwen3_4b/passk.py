r"""Evaluation as in the paper: 128 samples a problem, pass@1 to pass@128.

  python -m exprl_jax.main --config=configs/qwen3_4b/passk.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.eval.models="('/runs/exprl_process', '/runs/grpo@230')"

policy.init is the base that the others are compared with (paired bootstrap over
problems); samples are kept, so that a run can go on where it was
(docs/evaluation.md).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'evaluate'
  c.seed = 1
  c.steps = 0
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16'))
  c.rollout = ConfigDict(
      dict(
          group_size=1, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.eval = ConfigDict(
      dict(
          problems=('aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl,'
                    'hmmt=/data/hmmt.jsonl,imo=/data/imo_answerbench.jsonl'),
          samples=128, ks=(1, 4, 16, 64, 128), unlocked_k=16, diagnose=True))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=4))
  return c
