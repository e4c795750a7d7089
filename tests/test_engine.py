"""Laws of the engine: decode = forward, alone = together, in any shape."""

import dataclasses

from hypothesis import given, seed, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import head, transformer
from exprl_jax.rollout import decode, sampling
from exprl_jax.rollout.engine import Engine, Options
from exprl_jax.rollout.options import fit, resolve
from exprl_jax.rollout.pages import Pages
from exprl_jax.rollout.requests import Fork, Request, Sampling, SharedPrefix
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.conftest import SMALL

# Ragged prompts, also of one token, and ends on and off page boundaries (4).
LENGTHS = [3, 1, 8, 9, 14, 17]
DRAWN = Sampling(max_new_tokens=30, temperature=0.8, eos_ids=(1, 2))
OPTIONS = Options(slots=64, max_tokens=48, page=4, chunk=32, prefill=8)


def requests(how=DRAWN, samples=4, lengths=LENGTHS):
  rng = np.random.default_rng(0)
  return [
      Request(rng.integers(3, 40, n).tolist(), i * samples, samples, how)
      for i, n in enumerate(lengths)
  ]


def generate(small, mesh, work, seed=1, **options):
  cfg, params = small
  engine = Engine(cfg, mesh, dataclasses.replace(OPTIONS, **options))
  return engine.generate(decode.prepare(cfg, params, mesh), work,
                         jax.random.key(seed))


@pytest.fixture(scope='module')
def reference(small, one_device):
  return generate(small, one_device, requests())


def rows_of(work, samples):
  """Tokens i32[B, T], valid and completion bool[B, T], logprobs f32[B, T]."""
  prompts = [r.tokens for r in work for _ in range(r.samples)]
  width = max(len(p) + len(s.tokens) for p, s in zip(prompts, samples))
  shape = (len(samples), width)
  tokens, logprobs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  valid, completion = np.zeros(shape, bool), np.zeros(shape, bool)
  for i, (prompt, sample) in enumerate(zip(prompts, samples)):
    n, end = len(prompt), len(prompt) + len(sample.tokens)
    tokens[i, :n], tokens[i, n:end] = prompt, sample.tokens
    logprobs[i, n:end] = sample.logprobs
    valid[i, :end], completion[i, n:end] = True, True
  return tokens, valid, completion, logprobs


def test_greedy_decoding_is_the_argmax_of_the_full_forward(small, one_device):
  cfg, params = small
  work = requests(dataclasses.replace(DRAWN, temperature=0.0), samples=1)
  samples = generate(small, one_device, work)
  tokens, valid, completion, _ = rows_of(work, samples)
  b, t = tokens.shape
  hidden = transformer.forward(cfg, params, tokens,
                               jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
                               segment_ids=valid.astype(np.int32))
  best = np.argmax(head.project(cfg, params, hidden), axis=-1)
  wanted = completion[:, 1:]
  assert wanted.sum() > 60
  np.testing.assert_array_equal(tokens[:, 1:][wanted], best[:, :-1][wanted])


def test_sampled_logprobs_are_the_learners(small, reference):
  cfg, params = small
  tokens, valid, completion, logprobs = rows_of(requests(), reference)
  lp, _ = head.token_logprobs(cfg, params, tokens, valid, 0.8)
  np.testing.assert_allclose(logprobs, np.where(completion, lp, 0), atol=1e-5)


@pytest.mark.parametrize(
    'options',
    [
        dict(chunk=1),
        dict(chunk=7, slots=3),
        dict(chunk=32, slots=3, ahead=True),
        dict(page=8, prefill=32, slots=5),
        dict(page=64),
        pytest.param(dict(page=1, slots=6), marks=pytest.mark.slow),
        dict(pages=14, slots=8, chunk=7),  # no more than one row needs
        pytest.param(dict(pages=14, slots=8, chunk=7, ahead=True),
                     marks=pytest.mark.slow),
        dict(pages=30, slots=64, chunk=1, ahead=True)
    ],
    ids=str)
def test_the_engines_shape_changes_no_token(small, one_device, reference,
                                            options):
  samples = generate(small, one_device, requests(), **options)
  assert len(samples) == len(reference) == 24
  for got, want in zip(samples, reference):
    assert got.tokens.tolist() == want.tokens.tolist()
    assert got.finish_reason == want.finish_reason
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


@pytest.mark.parametrize('sizes', [
    pytest.param(dict(data=8, fsdp=1), marks=pytest.mark.slow),
    dict(data=1, fsdp=8),
    dict(data=2, fsdp=2, tensor=2),
    pytest.param(dict(data=2, fsdp=1, tensor=4), marks=pytest.mark.slow)
])
@pytest.mark.parametrize(
    'options', [dict(slots=64),
                dict(slots=3, chunk=7, pages=26, ahead=True)], ids=str)
def test_eight_devices_are_one(small, reference, sizes, options):
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**sizes))
  samples = generate(small, mesh, requests(), **options)
  for got, want in zip(samples, reference):
    assert got.tokens.tolist() == want.tokens.tolist()
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


def test_a_sample_does_not_depend_on_who_is_asked_with_it(
    small, one_device, reference):
  work = requests()
  alone = generate(small, one_device, [work[3]])
  backwards = generate(small, one_device, work[::-1])
  for i in range(4):
    want = reference[12 + i].tokens.tolist()
    assert alone[i].tokens.tolist() == want
    assert backwards[8 + i].tokens.tolist() == want
  other = generate(small, one_device, work, seed=2)
  assert [s.tokens.tolist() for s in other
         ] != [s.tokens.tolist() for s in reference]
  assert len({tuple(s.tokens) for s in reference}) > 20


def test_ends(small, one_device, reference):
  seen = set()
  for sample in reference:
    seen.add(sample.finish_reason)
    assert not set(sample.tokens[:-1].tolist()) & {1, 2}
    assert (sample.finish_reason == 'eos') == (sample.tokens[-1] in (1, 2))
    assert sample.finish_reason == 'eos' or len(sample.tokens) == 30
  assert seen == {'eos', 'length'}
  how = dataclasses.replace(DRAWN, eos_ids=(1,), stop_ids=(2,))
  stopped = generate(small, one_device, requests(how))
  for got, want in zip(stopped, reference):
    assert got.tokens.tolist() == want.tokens.tolist()
    assert got.finish_reason == {1: 'eos',
                                 2: 'stop'}.get(want.tokens[-1], 'length')


@pytest.mark.parametrize('ahead', [False, True])
def test_stop_strings_cut_behind_the_token_they_end_in(small, one_device,
                                                       reference, ahead):
  cfg, params = small
  engine = Engine(cfg, one_device,
                  dataclasses.replace(OPTIONS, chunk=7, slots=5, ahead=ahead),
                  lambda ids: ''.join(f'<{i}>' for i in ids))
  stop = ('><7', '<30>')
  how = dataclasses.replace(DRAWN, stop_strings=stop)
  samples = engine.generate(params, requests(how), jax.random.key(1))
  kinds = set()
  for got, want in zip(samples, reference):
    kinds.add(got.finish_reason)
    text = ''.join(f'<{i}>' for i in got.tokens[:-1])
    assert not any(s in text for s in stop)
    n = len(got.tokens)
    assert got.tokens.tolist() == want.tokens[:n].tolist()
    assert got.finish_reason == 'stop' or n == len(want.tokens)
  assert kinds == {'eos', 'stop', 'length'} or kinds == {'eos', 'stop'}
  with pytest.raises(InputError, match='stop strings need a tokenizer'):
    generate(small, one_device, requests(how))


def test_minimum_length_and_different_rows_together(small, one_device):
  """Each request has settings of its own; logprobs are of what was drawn."""
  cfg, params = small
  hows = [
      dataclasses.replace(DRAWN, min_new_tokens=9),
      dataclasses.replace(DRAWN, temperature=1.3, max_new_tokens=5),
      dataclasses.replace(DRAWN, temperature=0.0),
      dataclasses.replace(DRAWN, top_k=3)
  ]
  work = [dataclasses.replace(r, sampling=h) for r, h in zip(requests(), hows)]
  samples = generate(small, one_device, work, slots=5, chunk=7)
  alone = [generate(small, one_device, [r]) for r in work]
  assert [s.tokens.tolist() for s in samples
         ] == [s.tokens.tolist() for part in alone for s in part]
  assert all(len(s.tokens) >= 9 for s in samples[:4])
  assert all(len(s.tokens) <= 5 for s in samples[4:8])
  assert len({tuple(s.tokens) for s in samples[8:12]}) == 1  # greedy
  tokens, valid, completion, logprobs = rows_of(work, samples)
  b, t = tokens.shape
  hidden = transformer.forward(cfg, params, tokens,
                               jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
                               segment_ids=valid.astype(np.int32))
  logits = np.asarray(head.project(cfg, params, hidden))
  for row in range(12, 16):  # top_k = 3
    for col in np.flatnonzero(completion[row]):
      x = logits[row, col - 1] / 0.8
      x = np.where(x >= np.sort(x)[-3], x, -np.inf)
      p = np.exp(x - x.max())
      np.testing.assert_allclose(logprobs[row, col],
                                 np.log(p[tokens[row, col]] / p.sum()),
                                 atol=1e-4)


def test_int8_pages_are_close(small, one_device, rng):
  """The KL to the exact distribution, in nats, of the shipped kind of model."""
  cfg, params = small
  work = requests(dataclasses.replace(DRAWN, temperature=1.0))
  samples = generate(small, one_device, work, dtype='int8')
  tokens, valid, completion, logprobs = rows_of(work, samples)
  exact, _ = head.token_logprobs(cfg, params, tokens, valid)
  difference = (logprobs - np.asarray(exact))[completion]
  kl = float(np.mean(np.exp(-difference) - 1 + difference))  # k3
  assert 1e-9 < kl < 1e-3


def test_nothing_recompiles(small, one_device):
  """Temperatures, truncation, budgets, prompts, numbers of rows and groups."""
  cfg, params = small
  engine = Engine(cfg, one_device,
                  dataclasses.replace(OPTIONS, slots=8, elastic=False))
  engine.generate(params, requests(), jax.random.key(0))
  programs = (decode.decode, decode.prefill, decode.copy, decode.empty_pool)
  before = [p._cache_size() for p in programs]
  for how, samples, lengths in [(dataclasses.replace(DRAWN,
                                                     temperature=0.0), 1, [5]),
                                (dataclasses.replace(DRAWN, top_k=5, top_p=0.5,
                                                     min_p=0.1), 7, [2, 16]),
                                (Sampling(3, min_new_tokens=2,
                                          stop_ids=(4, 5, 6)), 2, LENGTHS * 3)]:
    engine.generate(params, requests(how, samples, lengths), jax.random.key(3))
    engine.release()
  assert [p._cache_size() for p in programs] == before


def test_slots_and_pages_follow_the_requests(one_device):
  full = resolve(dataclasses.replace(OPTIONS, max_tokens=1000), SMALL,
                 one_device)
  assert full.elastic and full.slots == 64 and full.pages == 64 * 251 + 2

  def sizes(samples, lengths, budget=20, devices=1, least=0):
    work = requests(Sampling(budget), samples, lengths)
    found = fit(full, work, devices, least)
    return found.slots, found.pages

  assert sizes(1, [5]) == (1, 32), '2 * (7 + 1) + 2 pages'
  assert sizes(3, [5, 5]) == (8, 128)
  assert sizes(70, [5]) == (64, 1024)
  assert sizes(64, [5], budget=995) == (64, full.pages)
  assert sizes(1, [5], least=50) == (1, 50), 'the pool is there already'
  # All samples of a request are on one device, four requests on four.
  assert sizes(3, [5] * 4, devices=4) == (16, 64)
  assert sizes(3, [5] * 5, devices=4) == (32, 128)
  fixed = dataclasses.replace(full, elastic=False)
  assert fit(fixed, requests(), 1) == fixed


@pytest.mark.parametrize('samples', [1, 3, 40])
def test_sizes_that_follow_the_requests_change_no_token(small, one_device,
                                                        samples):
  """Nor do the last rows, which move to fewer slots."""
  cfg, params = small
  work = requests(Sampling(30, eos_ids=(1, 2)), samples, [5])
  found, stats = [], []
  for elastic in (False, True):
    engine = Engine(
        cfg, one_device,
        dataclasses.replace(OPTIONS, chunk=4, elastic=elastic, widths=(8,)))
    found.append(engine.generate(params, work, jax.random.key(4)))
    stats.append(engine.stats)
  for a, b in zip(*found):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
  fixed, fits = (s.slot_steps / s.steps for s in stats)
  assert fixed == 64
  if samples == 40:
    assert 16 < fits < 50
  else:
    assert fits == {1: 1, 3: 4}[samples]


@pytest.mark.parametrize('options', [
    dict(),
    dict(slots=3, chunk=7),
    dict(pages=14, slots=6, chunk=7),
    dict(page=8, prefill=32, ahead=True)
], ids=str)
def test_forks_off_any_position_are_their_contexts_alone(
    small, one_device, options):
  """Mid-page, at page boundaries, at both ends; with and without suffixes."""
  rng = np.random.default_rng(3)
  prompt = rng.integers(3, 40, 17).tolist()
  forks = [
      Fork(at,
           rng.integers(3, 40, n).tolist())
      for at in (0, 1, 4, 7, 8, 16, 17)
      for n in (0, 1, 5, 12)
      if at + n
  ]
  work = [Request(prompt, 100, len(forks), DRAWN, forks), *requests(samples=2)]
  alone = [
      Request([*prompt[:at], *suffix], 100 + i, 1, DRAWN)
      for i, (at, suffix) in enumerate(forks)
  ] + work[1:]
  how = dict(max_tokens=60) | options
  how['pages'] = how.get('pages', 0) and 17
  got = generate(small, one_device, work, **how)
  want = generate(small, one_device, alone, max_tokens=60)
  assert [s.tokens.tolist() for s in got] == [s.tokens.tolist() for s in want]
  for a, b in zip(got, want):
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


# Lengths of the prefixes that three, two and four requests share.
PREFIXES = [9, 1, 8]
READ = (4, 7, 11)


def with_shared_prefixes(rng):
  """Three groups of requests with forks, each with a prefix in common."""
  out, count = [], 0
  for i, (length, children) in enumerate(zip(PREFIXES, (3, 2, 4))):
    common = rng.integers(3, 40, length).tolist()
    for _ in range(children):
      tokens = common + rng.integers(3, 40, rng.integers(1, 9)).tolist()
      forks = [
          Fork(at,
               rng.integers(3, 40, rng.integers(1, 7)).tolist())
          for at in rng.integers(length,
                                 len(tokens) + 1, 3).tolist()
      ]
      out.append(
          Request(tokens, count, 3,
                  dataclasses.replace(DRAWN, max_new_tokens=22, read_ids=READ),
                  forks, shared_prefix=SharedPrefix(i, length)))
      count += 3
  return out


def alone(work):
  """The same samples, each with a prompt of its own."""
  return [
      Request(r.context(i), r.id + i, 1, r.sampling)
      for r in work
      for i in range(r.samples)
  ]


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        pytest.param(dict(page=1, slots=4), marks=pytest.mark.slow),
        dict(page=8, slots=5, chunk=7, ahead=True),
        dict(pages=15, slots=8,
             chunk=7),  # now and then no pages for a shared prefix
        dict(pages=14, slots=8, chunk=1, ahead=True),
        dict(widths=(2, 8, 16), slots=64)
    ],
    ids=str)
def test_a_shared_prefix_changes_nothing(small, one_device, options):
  want = generate(small, one_device,
                  alone(with_shared_prefixes(np.random.default_rng(5))))
  got = generate(small, one_device,
                 with_shared_prefixes(np.random.default_rng(5)), **options)
  for a, b in zip(got, want):
    assert a.tokens.tolist() == b.tokens.tolist()
    np.testing.assert_allclose(a.read_logprobs, b.read_logprobs, atol=1e-5)


def test_shared_prefixes_on_eight_devices(small):
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=4, fsdp=1, tensor=2))
  want = generate(small, mesh,
                  alone(with_shared_prefixes(np.random.default_rng(5))))
  for options in (dict(slots=8), dict(slots=4, pages=15, chunk=7)):
    got = generate(small, mesh, with_shared_prefixes(np.random.default_rng(5)),
                   **options)
    assert [s.tokens.tolist() for s in got] == [s.tokens.tolist() for s in want]


def test_what_is_read_is_the_models_next_token(small, one_device):
  """Before temperature and truncation, whatever the row draws."""
  cfg, params = small
  work = with_shared_prefixes(np.random.default_rng(6))[:2]
  how = dataclasses.replace(work[0].sampling, temperature=0.3, top_k=2,
                            min_new_tokens=3)
  samples = generate(small, one_device,
                     [dataclasses.replace(r, sampling=how) for r in work])
  for i, sample in enumerate(samples):
    ids = jnp.array([work[i // 3].context(i % 3)])
    hidden = transformer.forward(cfg, params, ids,
                                 jnp.arange(ids.shape[1])[None],
                                 segment_ids=jnp.ones_like(ids))
    want = jax.nn.log_softmax(head.project(cfg, params, hidden[0, -1]))
    np.testing.assert_allclose(sample.read_logprobs, want[np.array(READ)],
                               atol=1e-5)


@pytest.mark.parametrize('ahead', [False, True])
def test_enough_samples_stop_their_group(small, one_device, reference, ahead):
  work = [dataclasses.replace(r, num_wanted=2) for r in requests()]
  samples = generate(small, one_device, work, slots=7, chunk=3, ahead=ahead)
  for i in range(len(work)):
    group = samples[i * 4:i * 4 + 4]
    ended = [s for s in group if s.finish_reason != 'dropped']
    assert len(ended) >= 2
    for got, want in zip(group, reference[i * 4:]):
      n = len(got.tokens)
      assert got.tokens.tolist() == want.tokens[:n].tolist()
      assert got.finish_reason in (want.finish_reason, 'dropped')
  assert any(s.finish_reason == 'dropped' for s in samples)


@pytest.mark.parametrize('options', [
    dict(),
    pytest.param(dict(slots=5, ahead=True), marks=pytest.mark.slow),
    dict(slots=5, pages=14)
], ids=str)
def test_unfinished_rows_go_on_in_a_later_call(small, one_device, reference,
                                               options):
  """With the same parameters and key it is as if one call had done it."""
  cfg, params = small
  engine = Engine(cfg, one_device,
                  dataclasses.replace(OPTIONS, chunk=5, **options))
  work, done, calls = requests(), {}, 0
  # A group of two and two of one; then whoever is left.
  work = [
      part for r in work for part in (dataclasses.replace(r, samples=2),
                                      Request(r.tokens, r.id + 2, 1, DRAWN),
                                      Request(r.tokens, r.id + 3, 1, DRAWN))
  ]
  while work:
    samples = iter(
        engine.generate(params, work, jax.random.key(1), stop_after=4))
    calls += 1
    unfinished = []
    for request in work:
      group = [next(samples) for _ in range(request.samples)]
      ids = range(request.id, request.id + request.samples)
      done |= {
          i: s for i, s in zip(ids, group) if s.finish_reason != 'unfinished'
      }
      unfinished += [
          Request(request.tokens, i, 1, DRAWN, partial=[s])
          for i, s in zip(ids, group)
          if s.finish_reason == 'unfinished'
      ]
    work = unfinished
  assert calls > 1
  for i, want in enumerate(reference):
    assert done[i].tokens.tolist() == want.tokens.tolist()
    assert done[i].finish_reason == want.finish_reason
    np.testing.assert_allclose(done[i].logprobs, want.logprobs, atol=1e-5)


def test_prompts_are_prefilled_once(small, one_device):
  cfg, params = small
  engine = Engine(cfg, one_device, OPTIONS)
  engine.generate(params, requests(), jax.random.key(0))
  assert engine.stats.prefilled == sum(n - 1 for n in LENGTHS)
  assert engine.stats.preemptions == 0


def test_the_roofline_fraction_by_hand(small, one_device, monkeypatch):
  cfg, params = small
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(chips.CHIPS, kind,
                      chips.CHIPS['TPU v5 lite']._replace(bandwidth=1e9))
  engine = Engine(cfg, one_device, OPTIONS)
  engine.generate(params, [
      Request([5] * 7, 0, 1, Sampling(10)),
      Request([5] * 3, 1, 1, Sampling(10))
  ], jax.random.key(0))
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  token = 2 * 2 * 2 * 16 * 4  # k and v, layers, kv heads, head_dim, bytes
  context = 10 * 7 + 10 * 3 + 2 * 50  # lengths before, and what is added
  want = (10 * weights + context * token) / (engine.stats.decode_seconds * 1e9)
  np.testing.assert_allclose(engine.metrics()['perf/decode_roofline_frac'],
                             want, rtol=1e-6)


def test_mistakes_are_named(small, one_device):
  how = dataclasses.replace(DRAWN, max_new_tokens=40)
  with pytest.raises(InputError, match='prompt 4 has 14 tokens; .* is 54 of'):
    generate(small, one_device, requests(how, lengths=[1, 2, 3, 8, 14]))
  with pytest.raises(InputError, match='prompt 0 forks at 4 of 3'):
    generate(small, one_device,
             [Request([1, 2, 3], 0, 1, DRAWN, [Fork(4, [])])])
  with pytest.raises(InputError,
                     match='sample 0 and its prompt prefix need 16'):
    generate(
        small, one_device,
        [Request([5] * 16, 0, 2, DRAWN,
                 [Fork(0, [5] * 18), Fork(16, [5])])], pages=14)
  with pytest.raises(InputError, match='prompt 0 is empty'):
    generate(small, one_device, [Request([], 0, 1, DRAWN)])
  with pytest.raises(InputError, match='9 end and stop tokens; at most 8'):
    generate(small, one_device, requests(Sampling(4, eos_ids=tuple(range(9)))))
  with pytest.raises(InputError, match='pages=13 of 4 tokens: a row of 48'):
    generate(small, one_device, requests(), pages=13)


# Sampling.

P = np.array([0.02, 0.3, 0.05, 0.25, 0.2, 0.1, 0.08])


@pytest.mark.parametrize('how, kept', [(dict(), range(7)),
                                       (dict(temperature=0.5), range(7)),
                                       (dict(top_k=3), (1, 3, 4)),
                                       (dict(top_p=0.6), (1, 3, 4)),
                                       (dict(top_p=0.55), (1, 3)),
                                       (dict(min_p=0.3), (1, 3, 4, 5)),
                                       (dict(top_k=4, top_p=0.6), (1, 3)),
                                       (dict(top_p=1e-6), (1,)),
                                       (dict(temperature=2.0, top_k=1), (1,))],
                         ids=str)
def test_frequencies_are_those_of_the_truncated_softmax(how, kept):
  """20,000 draws against p; seed 0; five standard errors."""
  n = 20_000
  how = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | how
  want = np.where(np.isin(np.arange(7), list(kept)),
                  P**(1 / how['temperature']), 0)
  want /= want.sum()
  settings = sampling.Settings(
      *(jnp.full(n, how[k], jnp.int32 if k == 'top_k' else jnp.float32)
        for k in sampling.Settings._fields))
  keys = jax.random.split(jax.random.key(0), n)
  logits = jnp.tile(jnp.log(P)[None] + 3.0, (n, 1))
  token, logprob = jax.jit(sampling.draw)(logits, keys, jnp.arange(n), settings)
  error = np.abs(np.bincount(token, minlength=7) / n - want)
  assert np.all(error <= 5 * np.sqrt(want * (1 - want) / n))
  np.testing.assert_allclose(logprob, np.log(want[np.asarray(token)]),
                             atol=2e-6)


def test_a_large_vocabulary(rng):
  """Blocks, their edges and -inf: the drawn token is the first whose
  cumulative probability exceeds u."""
  v, n = 1300, 4000
  logits = rng.normal(size=v) * 2
  logits[rng.random(v) < 0.3] = -np.inf
  keys = jax.random.split(jax.random.key(1), n)
  u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 5)))(keys)
  one = jnp.ones(n)
  token, _ = sampling.draw(
      jnp.tile(jnp.float32(logits)[None], (n, 1)), keys, jnp.full(n, 5),
      sampling.Settings(one, jnp.zeros(n, jnp.int32), one, one * 0))
  p = np.exp(logits - logits.max())
  cumulative = np.cumsum(p / p.sum())
  want = np.searchsorted(cumulative, np.asarray(u, np.float64), side='right')
  assert np.isfinite(logits[np.asarray(token)]).all()
  assert (np.asarray(token) == want).mean() > 0.999  # but for rounding


@pytest.mark.parametrize('u', [0.0, 1.0, np.nextafter(np.float32(1), 0)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(u):
  weight = jnp.array([[0.0, 1e-8, 0.0, 3.0, 1e-8, 0.0]])
  token, _ = sampling._invert(weight, jnp.array([u], jnp.float32))
  assert weight[0, int(token[0])] > 0


# Pages.


@seed(0)
@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_pages_are_never_lost_nor_owned_twice(data):
  count = data.draw(st.integers(2, 20))
  pages, owned = Pages(count), []
  for _ in range(data.draw(st.integers(0, 60))):
    action = data.draw(st.sampled_from(['take', 'fork', 'release']))
    if action == 'take':
      n = data.draw(st.integers(0, 6))
      taken = pages.take(n)
      used = {p for part in owned for p in part}
      assert (taken is None) == (n > count - 1 - len(used))
      if taken is not None:
        assert len(set(taken)) == n and not set(taken) & used
        assert 0 not in taken
        owned.append(taken)
    elif owned:
      part = owned[data.draw(st.integers(0, len(owned) - 1))]
      if action == 'fork':
        shared = part[:data.draw(st.integers(0, len(part)))]
        pages.share(shared)
        owned.append(list(shared))
      else:
        pages.release(part)
        owned.remove(part)
    assert pages.free == count - 1 - len({p for x in owned for p in x})
  for part in owned:
    pages.release(part)
  assert pages.free == count - 1
  with pytest.raises(AssertionError, match='is free'):
    pages.release([1])
