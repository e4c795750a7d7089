"""A training step against google-tunix's, and what packing saves.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 1 python benchmarks/train_step.py [--quick]   # one core

Needs `pip install -e .[bench]`; without it only ours is measured. The model
is the one of rollout.py, random, float32.

step     8 prompts of 64 tokens, 8 samples of 128 new ones each, a reward that
         counts even tokens, advantages by group, PPO clip, one AdamW update:
         the phases of runs/train.py against tunix.rl.grpo's GRPOLearner,
         without a KL term and with k3 at beta 0.04 to a frozen copy. Both
         start from the same weights. Seconds of the process's CPU time, medians
         of alternating
         steps after one that compiles. Each computes its gradient in
         micro-batches of the size that is fastest for it (--ours-rows,
         --theirs-prompts).
memory   peak resident memory of one process each that takes these steps, and
         how much of it was there before the model was (libraries).
packing  ours alone, the update: 64 sequences, prompts of 16 tokens, completions
         geometric with a mean of a fifth of the cap of 512. `padded` gives each
         a row of its own, `packed` rows of 528 tokens to all.
mfu      model FLOP of the update (6 P + 6 layers heads head_dim length per
         token; P without the embedding, which is looked up) over CPU seconds
         times --peak FLOP/s; 0: what a matrix product of jax reaches here.

Prints JSON.
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data import chat
from exprl_jax.grading.grader import Grader
from exprl_jax.models import config as model_config
from exprl_jax.models import transformer
from exprl_jax.rewards import base
from exprl_jax.rl import credit, experience, learner, optimizer
from exprl_jax.rl.experience import Example
from exprl_jax.rl.policy import Policy
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.rollout.sources import Synchronous
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import Problem

MODEL = {
    'model_type': 'qwen3', 'vocab_size': 4096, 'num_hidden_layers': 4,
    'hidden_size': 256, 'intermediate_size': 1024, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 64, 'rope_theta': 1e6,
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': False
}
PROMPTS, GROUP, PROMPT, NEW = 8, 8, 64, 128
CAP, TAILED_PROMPT = 512, 16
STEPS = 1_000_000  # of the schedule


def model(mesh: jax.sharding.Mesh | None = None):
  """(ModelConfig, parameters), these on a mesh as a run's are."""
  cfg = model_config.parse_config(MODEL, 'benchmark')
  init = functools.partial(transformer.init, cfg)
  place = None if mesh is None else mesh_lib.shardings(
      transformer.logical_axes(cfg), jax.eval_shape(init, jax.random.key(0)),
      mesh)
  return cfg, jax.jit(init, out_shardings=place)(jax.random.key(0))


def config(beta: float, rows: int, row_tokens: int = 0) -> config_lib.Config:
  """Ours."""
  return config_lib.Config(
      steps=STEPS, reward='outcome',
      rollout=config_lib.Rollout(group_size=GROUP, max_prompt_tokens=PROMPT,
                                 max_new_tokens=NEW),
      loss=config_lib.Loss(kl_coef=beta, dual_clip=0.0,
                           aggregation='seq_mean_token_mean'),
      optim=config_lib.Optim(lr=1e-5, row_tokens=row_tokens, micro_rows=rows))


def prompts() -> np.ndarray:
  """Token ids, written as text."""
  rng = np.random.default_rng(0)
  ids = rng.integers(1, MODEL['vocab_size'], (PROMPTS, PROMPT))
  return np.array([' '.join(map(str, row)) for row in ids])


# Ours.


class Numbers:
  """A tokenizer of token ids that are written as text; nothing ends a row."""

  eos_ids, bos_ids, pad_id, has_chat_template = (), (), 0, True

  def render(self, messages, options=None):
    """No template."""
    del options
    return messages[-1]['content']

  def encode_pieces(self, texts):
    """Token ids of whole texts."""
    return [self.encode(' '.join(p.text for p in pieces)) for pieces in texts]

  def encode(self, text, special=False):
    """Token ids."""
    del special
    return [int(x) for x in text.split()]

  def decode(self, ids, special=False):
    """Text."""
    del special
    return ' '.join(map(str, ids))


def even(traces):
  """The share of even tokens."""
  rows = [t.trajectory.completion for t in traces]
  assert {len(row) for row in rows} == {NEW}
  share = np.array([[(row % 2 == 0).mean()] for row in rows], np.float32)
  return share, np.ones(share.shape, bool), {}


def ours(beta: float, rows: int):
  """Step i: the phases of runs/train.py, on a reward that costs nothing."""
  settings, mesh = config(beta, rows), mesh_lib.make_mesh(config_lib.Mesh())
  cfg, params = model(mesh)
  reference = jax.tree.map(jnp.copy, params) if beta else None
  state = optimizer.init_state(params, settings.optim, STEPS)
  policy, tokenizer = Policy(settings, cfg, mesh, reference), Numbers()
  problems = [
      Problem(str(i), str(text), answer='1') for i, text in enumerate(prompts())
  ]
  source = Synchronous(
      settings, Sampler(settings, cfg, tokenizer,
                        mesh), lambda step, attempt: problems,
      lambda problems: chat.policy_prompts(tokenizer, problems, settings))
  reward = base.scoring(settings, tokenizer, Grader(settings.grading), even,
                        'row')

  def run(i):
    nonlocal state
    timer = metrics.Timer()
    with timer('rollout'):
      groups = source.next(i, 0, state.params, jax.random.key(i))
    scored = reward(groups)
    with timer('logprob'):
      logprobs = experience.logprobs(policy, state.params, scored.trajectories)
      examples = experience.examples(scored.trajectories, logprobs,
                                     credit.assign(settings, scored, logprobs))
    with timer('update'):
      state, logs = learner.update(policy, state, examples, GROUP)
    assert logs['optim/grad_norm'] > 0
    jax.block_until_ready(state)
    return timer.metrics()

  return run


# Theirs.


def theirs(beta: float, micro_prompts: int, batches) -> int:
  """Trains on what `batches` yields; returns its optimizer steps."""
  import rollout
  from tunix.rl import rl_cluster
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout import base_rollout

  assert rollout.MODEL == MODEL
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()).reshape(-1, 1), ('fsdp', 'tp'))
  role = rl_cluster.Role
  # Theirs is a share: each of their models needs arrays of its own.
  make = lambda: rollout._package_model(*model())
  cluster = rl_cluster.RLCluster(
      actor=make(), reference=make() if beta else None,
      tokenizer=rollout._Numbers(), cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh={
              r: mesh for r in (role.ACTOR, role.REFERENCE, role.ROLLOUT)
          }, training_config=rl_cluster.RLTrainingConfig(
              actor_optimizer=optimizer.optimizer(config(beta, 1).optim, STEPS),
              eval_every_n_steps=STEPS, max_steps=STEPS,
              mini_batch_size=PROMPTS, train_micro_batch_size=micro_prompts,
              rollout_micro_batch_size=PROMPTS,
              compute_logps_micro_batch_size=micro_prompts),
          rollout_config=base_rollout.RolloutConfig(max_tokens_to_generate=NEW,
                                                    temperature=1.0, top_p=1.0,
                                                    max_prompt_length=PROMPT,
                                                    kv_cache_size=PROMPT + NEW,
                                                    eos_tokens=[-1])))

  def reward(prompts, completions, **_):
    rows = [[int(x) for x in text.split()] for text in completions]
    assert len(rows) == PROMPTS * GROUP and set(map(len, rows)) == {NEW}
    return [sum(x % 2 == 0 for x in row) / NEW for row in rows]

  learn = grpo_learner.GRPOLearner(
      cluster,
      grpo_learner.GRPOConfig(num_generations=GROUP, beta=beta,
                              kl_loss_mode='low_var_kl'), reward)
  learn.train(batches)
  return cluster.actor_trainer.train_steps


# Measurements.


def step(beta: float, repeats: int, args) -> dict:
  """Seconds of a step of each."""
  run, seconds = ours(beta, args.ours_rows), {'ours': [], 'theirs': []}
  parts = []

  def batches():
    """Theirs asks for a batch when it is done with the one before."""
    for i in range(repeats + 1):
      seconds['ours'].append(cpu(lambda i=i: parts.append(run(i))))
      start = time.process_time()
      yield {'prompts': prompts()}
      seconds['theirs'].append(time.process_time() - start)

  if args.without_theirs:
    for _ in batches():
      pass
    del seconds['theirs']
  else:
    assert theirs(beta, args.theirs_prompts, batches()) == repeats + 1
  out = {
      name: round(statistics.median(x[1:]), 3) for name, x in seconds.items()
  }
  if 'theirs' in out:
    out['ratio'] = round(
        statistics.median(a / b for a, b in list(zip(*seconds.values()))[1:]),
        3)
  return out | {
      'ours_wall': {
          k: round(statistics.median(p[k]
                                     for p in parts[1:]), 3)
          for k in parts[0]
      }
  }


def cpu(work) -> float:
  """Seconds."""
  start = time.process_time()
  work()
  return time.process_time() - start


def alone(who: str, beta: float, repeats: int, args) -> dict:
  """Takes steps; memory of this process in MB."""
  if who == 'ours':
    before = peak()
    run = ours(beta, args.ours_rows)
    for i in range(repeats):
      run(i)
  else:
    import rollout  # noqa: F401
    from tunix.rl.grpo import grpo_learner  # noqa: F401

    before = peak()
    assert repeats == theirs(
        beta, args.theirs_prompts,
        iter([{'prompts': prompts()} for _ in range(repeats)]))
  return {'peak': round(peak()), 'libraries': round(before)}


def peak() -> float:
  """Of this process, MB. (ru_maxrss would be the parent's, if larger.)"""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) / 1024


def memory(beta: float, repeats: int, args) -> dict:
  """Both, each in a process of its own."""
  out = {}
  for who in ('ours',) if args.without_theirs else ('ours', 'theirs'):
    found = subprocess.run([
        sys.executable, __file__, f'--alone={who}', f'--betas={beta}',
        f'--repeats={repeats}', f'--ours-rows={args.ours_rows}',
        f'--theirs-prompts={args.theirs_prompts}'
    ], check=True, stdout=subprocess.PIPE, text=True).stdout
    out[who] = json.loads(found.splitlines()[-1])
  return out


def random_examples(lengths: np.ndarray, prompt: int) -> list[Example]:
  """Random sequences of so many tokens."""
  rng, out = np.random.default_rng(1), []
  for n in lengths.tolist():
    old = rng.normal(-8, 1, n).astype(np.float32)
    out.append(
        Example(tokens=rng.integers(1, MODEL['vocab_size'],
                                    n).astype(np.int32), loss_mask=np.arange(n)
                >= prompt, rollout_logprobs=old, old_logprobs=old,
                ref_logprobs=old, advantages=np.full(n, rng.normal(),
                                                     np.float32)))
  return out


def update(examples: list[Example], settings: config_lib.Config):
  """An update on a batch."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh())
  cfg, params = model(mesh)
  state = optimizer.init_state(params, settings.optim, STEPS)
  policy, fills = Policy(settings, cfg, mesh), []

  def run():
    nonlocal state
    state, logs = learner.update(policy, state, examples, GROUP)
    jax.block_until_ready(state)
    fills.append(logs['perf/packing_fill'])

  return run


def flops(lengths: np.ndarray) -> float:
  """Of an update's forward and backward pass, as models count."""
  cfg, params = model()
  p = sum(x.size for x in jax.tree.leaves(params)) - params['embedding'].size
  attention = 6 * cfg.num_layers * cfg.num_heads * cfg.head_dim
  return float((6 * p * lengths + attention * lengths**2).sum())


def peak_flops(size: int = 2048) -> float:
  """Of a float32 matrix product, a second of CPU time."""
  x = jnp.ones((size, size))
  product = jax.jit(functools.partial(jnp.dot, precision='highest'))
  product(x, x).block_until_ready()
  return 2 * size**3 / min(
      cpu(lambda: product(x, x).block_until_ready()) for _ in range(7))


def updates(repeats: int, args) -> dict:
  """Seconds of updates, and their share of the peak."""
  rng = np.random.default_rng(0)
  equal = np.full(PROMPTS * GROUP, PROMPT + NEW)
  tailed = TAILED_PROMPT + np.minimum(rng.geometric(5 / CAP, PROMPTS * GROUP),
                                      CAP)
  width = TAILED_PROMPT + CAP
  packed = random_examples(tailed, TAILED_PROMPT)
  padded = [
      x._replace(
          **{
              name: np.pad(values, (0, width - len(values)))
              for name, values in x._asdict().items()
              if values is not None
          })
      for x in packed
  ]
  rows = args.tailed_rows
  works = {
      'equal': (equal,
                update(random_examples(equal, PROMPT),
                       config(0.0, args.ours_rows))),
      'padded': (tailed, update(padded, config(0.0, rows, width))),
      'packed': (tailed, update(packed, config(0.0, rows, width)))
  }
  seconds = {name: [] for name in works}
  for _ in range(repeats + 1):
    for name, (_, run) in works.items():
      seconds[name].append(cpu(run))
  fastest = args.peak or peak_flops()
  median = {k: statistics.median(x[1:]) for k, x in seconds.items()}
  out = {
      name: {
          'seconds': round(median[name], 3),
          'mfu': round(flops(lengths) / median[name] / fastest, 3)
      } for name, (lengths, _) in works.items()
  }
  return out | {
      'mean_length': round(float(tailed.mean()), 1), 'row': width,
      'packed_is_faster': round(median['padded'] / median['packed'],
                                2), 'peak_gflops': round(fastest / 1e9, 1)
  }


def main() -> None:
  """Prints the figures as JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--quick', action='store_true', help='two repeats')
  parser.add_argument('--parts', default='step,memory,update')
  parser.add_argument('--ours-rows', type=int, default=4)
  parser.add_argument('--tailed-rows', type=int, default=2)
  parser.add_argument('--theirs-prompts', type=int, default=1)
  parser.add_argument('--peak', type=float, default=0.0)
  parser.add_argument('--alone', choices=('ours', 'theirs'))
  parser.add_argument('--betas', default='0,0.04')
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  args.without_theirs = importlib.util.find_spec('tunix') is None
  repeats = 2 if args.quick else args.repeats
  if args.alone:
    print(json.dumps(alone(args.alone, float(args.betas), repeats, args)))
    return
  parts = args.parts.split(',')
  result = {'cores': len(os.sched_getaffinity(0)), 'jax': jax.__version__}
  for beta in map(float, args.betas.split(',')):
    if 'step' in parts:
      result[f'step, beta {beta}'] = step(beta, repeats, args)
    if 'memory' in parts:
      result[f'memory, beta {beta}, MB'] = memory(beta, 2, args)
  if 'update' in parts:
    result['update'] = updates(repeats, args)
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  main()
