"""A GRPO step of a real model on one core: ours beside TRL's GRPOTrainer.

  pip install -e ".[bench]"
  python tests/smollm2.py /tmp/smollm2             # SmolLM2-135M-Instruct
  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 \
      taskset -c 0 python benchmarks/trl_step.py --model=/tmp/smollm2 [--lora]

4 prompts of about 128 tokens, 4 samples of 96 new ones each, a reward that
counts letters, advantages by group, PPO clip, no KL term, one AdamW update; all
parameters, or with --lora adapters of rank 16 of all matrices. Seconds of the
process's CPU time, medians of alternating steps after one that compiles.
--dtype is that of both. Prints JSON.
"""

import argparse
import json
import statistics
import time

import datasets
import jax
import numpy as np
import peft
import torch
import transformers
import trl

from exprl_jax import config as config_lib
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading.grader import Grader
from exprl_jax.models import references
from exprl_jax.rewards import base
from exprl_jax.rl import credit, experience, learner, optimizer
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.rollout.sources import Synchronous
from exprl_jax.runs import setup
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import Problem

PROMPTS, GROUP, NEW, STEPS, RANK, LR = 4, 4, 96, 1000, 16, 1e-5
WORDS = ('count the apples that are left when some of them were given to a '
         'friend and then write down how many there are in all').split()


def questions() -> list[str]:
  """About 90 tokens each, which the chat template makes 128."""
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, 88)) for _ in range(PROMPTS)]


def score(text: str) -> float:
  """The share of letters that are vowels."""
  return sum(c in 'aeiou' for c in text) / max(len(text), 1)


def ours(args):
  """Step i: the phases of runs/train.py, on a reward that costs nothing."""
  config = config_lib.Config(
      steps=STEPS, reward='outcome',
      policy=config_lib.Model(init=args.model, dtype=args.dtype,
                              remat=args.remat, lora_rank=RANK * args.lora,
                              lora_alpha=2.0 * RANK),
      rollout=config_lib.Rollout(group_size=GROUP, max_prompt_tokens=160,
                                 max_new_tokens=NEW, min_new_tokens=NEW),
      loss=config_lib.Loss(kl_coef=0.0, dual_clip=0.0,
                           aggregation='token_mean'),
      optim=config_lib.Optim(lr=LR, row_tokens=512, micro_rows=args.rows))
  mesh = mesh_lib.make_mesh(config_lib.Mesh())
  origin = references.find(args.model)
  policy, params = setup.load_policy(config, mesh, origin)
  state = optimizer.init_state(params, config.optim, STEPS)
  tokenizer = Tokenizer(origin.folder)
  problems = [
      Problem(str(i), text, answer='1') for i, text in enumerate(questions())
  ]
  source = Synchronous(
      config, Sampler(config, policy.model, tokenizer,
                      mesh), lambda step, attempt: problems,
      lambda problems: chat.policy_prompts(tokenizer, problems, config))

  def vowels(traces):
    value = np.array([[score(t.text)] for t in traces], np.float32)
    return value, np.ones(value.shape, bool), {}

  reward = base.scoring(config, tokenizer, Grader(config.grading), vowels,
                        'row')

  def run(i):
    nonlocal state
    timer = metrics.Timer()
    with timer('rollout'):
      groups = source.next(i, 0, policy.sampling_params(state.params),
                           jax.random.key(i))
    scored = reward(groups)
    logprobs = experience.logprobs(policy, state.params, scored.trajectories)
    examples = experience.examples(scored.trajectories, logprobs,
                                   credit.assign(config, scored, logprobs))
    with timer('update'):
      state, logs = learner.update(policy, state, examples, GROUP)
      jax.block_until_ready(state)
    assert logs['optim/grad_norm'] > 0
    return timer.metrics() | {'tokens': sum(len(x.tokens) for x in examples)}

  return run


class Alternate(transformers.TrainerCallback):
  """Takes our step before each of theirs, and times both."""

  def __init__(self, run):
    self._run, self._start = run, 0.0
    self.seconds = {'ours': [], 'theirs': []}
    self.parts = []

  def on_step_begin(self, args, state, control, **kwargs):
    """Theirs has not sampled yet."""
    start = time.process_time()
    self.parts.append(self._run(state.global_step))
    self.seconds['ours'].append(time.process_time() - start)
    self._start = time.process_time()

  def on_step_end(self, args, state, control, **kwargs):
    """Theirs has updated."""
    self.seconds['theirs'].append(time.process_time() - self._start)


def theirs(args, callback) -> int:
  """Trains for as many steps; returns the tokens of their last batch."""
  lengths = []

  def reward(completions, completion_ids, **_):
    lengths.append(list(map(len, completion_ids)))
    return [score(c[0]['content']) for c in completions]

  adapters = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0,
                             target_modules='all-linear') if args.lora else None
  rows = [{'prompt': [{'role': 'user', 'content': q}]} for q in questions()]
  dtype = getattr(torch, args.dtype)
  trainer = trl.GRPOTrainer(
      transformers.AutoModelForCausalLM.from_pretrained(args.model,
                                                        dtype=dtype), reward,
      trl.GRPOConfig(output_dir=args.out, use_cpu=True, bf16=False,
                     report_to=[], save_strategy='no', logging_steps=10**6,
                     max_steps=args.repeats + 1,
                     per_device_train_batch_size=PROMPTS * GROUP // args.pieces,
                     gradient_accumulation_steps=args.pieces,
                     num_generations=GROUP, max_completion_length=NEW,
                     temperature=1.0, beta=0.0, learning_rate=LR,
                     gradient_checkpointing=False, disable_tqdm=True,
                     generation_kwargs={'min_new_tokens': NEW}),
      train_dataset=datasets.Dataset.from_list(rows), callbacks=[callback],
      processing_class=transformers.AutoTokenizer.from_pretrained(args.model),
      peft_config=adapters)
  trainer.train()
  assert lengths[-1] == [NEW] * len(lengths[-1])
  return sum(map(sum, lengths)) // len(callback.parts)


def main():
  """Prints seconds and ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True)
  parser.add_argument('--lora', action='store_true')
  parser.add_argument('--dtype', default='float32',
                      choices=('float32', 'bfloat16'))
  parser.add_argument('--remat', default='full')
  parser.add_argument('--rows', type=int, default=4, help='our micro_rows')
  parser.add_argument('--pieces', type=int, default=1,
                      help='their gradient accumulation')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--out', default='/tmp/trl_step')
  args = parser.parse_args()
  torch.set_num_threads(1)
  callback = Alternate(ours(args))
  new = theirs(args, callback)
  seconds = {k: v[1:] for k, v in callback.seconds.items()}
  print(
      json.dumps({
          'lora': args.lora, 'dtype': args.dtype, 'seconds': {
              k: round(statistics.median(v), 2) for k, v in seconds.items()
          }, 'ratio': round(
              statistics.median(a / b for a, b in zip(*seconds.values())), 3),
          'new tokens of theirs': new, 'ours': callback.parts[-1]
      }))


if __name__ == '__main__':
  main()
