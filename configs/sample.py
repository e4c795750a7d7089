r"""Samples completions of your prompts from any Hugging Face model.

  python -m exprl_jax.main --config=configs/sample.py \
    --config.policy.init=MODEL --config.sample.prompts=IN.jsonl \
    --config.sample.out=OUT.jsonl --config.rollout.temperature=0.7

An input line has `id` and one of `prompt` (text), `messages` (chat) or
`tokens`; an output line has `id`, `sample`, `tokens`, `text`, `logprobs` and
`finish_reason`. Without flags, the config asks the shipped tiny policy three
questions.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'sample'
  c.seed = 0
  c.policy = ConfigDict(dict(init='asset:tiny_policy', dtype='float32'))
  c.sample = ConfigDict(
      dict(prompts='asset:tiny_problems/prompts.jsonl', out='samples.jsonl'))
  c.rollout = ConfigDict(
      dict(group_size=2, max_prompt_tokens=64, max_new_tokens=64,
           temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, slots=64))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, rollout_tensor=0))
  return c
