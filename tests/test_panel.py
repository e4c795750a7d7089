"""Several judges as one: what their mean and their minimum keep."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.data import tiny_world as world
from exprl_jax.evals import judge_check
from exprl_jax.judge import factory, hacking, panel, readouts
from exprl_jax.judge.tree import Judgments
from exprl_jax.planning import memory
from exprl_jax.runs import recipes
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

OTHER = '''[system]
rate from 1 to 5 how much of the reference the trace reaches
[user]
reference {reference}
problem {problem}
trace {nonce} {trace} {nonce}
[score]
score
'''


def frozen(*flags, config='judge'):
  return recipes.freeze(
      main.parse([f'--config=configs/{config}.py', *flags])[1])


def items(count):
  out = []
  for story in world.stories('judge_accept')[:count]:
    steps = story.worked().split(' ### ')
    out.append((story.problem(''), [steps[0],
                                    *(f'### {s}' for s in steps[1:])]))
  return out


def same(a, b):
  for name in ('score', 'score_token_probability', 'status', 'truncated'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@pytest.fixture(scope='module')
def load(one_device, tmp_path_factory):
  """(panel, combine, workdir) -> the tiny judge, or a panel of it."""
  other = tmp_path_factory.mktemp('other') / 'other.txt'
  other.write_text(OTHER)

  def make(*entries, combine='mean', workdir=None, templates=()):
    config = frozen()
    cfg = dataclasses.replace(
        config.judge, panel=tuple(e.format(other=other) for e in entries),
        combine=combine, templates=templates)
    config = dataclasses.replace(config, judge=cfg)
    panel.check(cfg)
    return factory.load(config, one_device, workdir, max_trace_tokens=56)

  return make


def test_a_panel_of_one_is_the_judge(load):
  want = load().score(items(3), 8)
  for combine in ('mean', 'min'):
    for entries in (['template=tiny'], ['template=tiny'] * 2,
                    ['template=tiny'] * 3):
      same(load(*entries, combine=combine).score(items(3), 8), want)


def test_mean_and_minimum_of_two_templates(load):
  both = 'template=tiny', 'template={other}'
  first, second = (load(e).score(items(3), 8) for e in both)
  mean = load(*both).score(items(3), 8)
  least = load(*both, combine='min').score(items(3), 8)
  assert (first.score != second.score).any()
  np.testing.assert_allclose(mean.score, (first.score + second.score) / 2,
                             atol=1e-6)
  np.testing.assert_array_equal(least.score,
                                np.minimum(first.score, second.score))
  assert (least.score <= mean.score).all() and mean.readable.any()


def judgments(rows, texts=''):
  """Judgments of a trace: (score, status) of each step."""
  score, status = zip(*rows)
  return Judgments(np.array([score], np.float32),
                   np.full((1, len(rows)), 0.9, np.float32),
                   np.array([status], np.int8), np.array([False]),
                   [[texts] * len(rows)])


STEP = st.tuples(
    st.sampled_from([0, 0.25, 0.5, 0.8, 1]),
    st.sampled_from(
        [readouts.OK, readouts.OK, readouts.UNREADABLE, readouts.DROPPED]))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.lists(STEP, min_size=3, max_size=3), min_size=1, max_size=4))
def test_laws_of_combination(rows):
  parts = [judgments(row) for row in rows]
  mean, least = (panel.combined(parts, how) for how in ('mean', 'min'))
  for out in (mean, least):
    # A step has a score where all members have one.
    np.testing.assert_array_equal(out.readable,
                                  np.all([p.readable for p in parts], axis=0))
    assert not out.score[~out.readable].any()
    same(panel.combined([*parts, *parts], 'mean'), mean)
    # No order, but that of the reasons for which there is no score.
    turned = panel.combined(parts[::-1], 'mean')
    np.testing.assert_allclose(turned.score, mean.score, atol=1e-7)
    np.testing.assert_array_equal(turned.readable, mean.readable)
  assert (least.score <= mean.score).all()
  first = [
      next((p for p in parts if not p.readable[0, s]),
           parts[0]) for s in range(3)
  ]
  for s, part in enumerate(first):
    assert mean.status[0, s] == part.status[0, s]


def test_what_members_write_stays_together():
  out = panel.combined(
      [judgments([(1, 0)], 'a'),
       judgments([(1, 0)]),
       judgments([(1, 0)], 'b')], 'mean')
  assert out.texts == [['a\nb']]


def test_members_remember_by_themselves(load, tmp_path):
  """A new member is the only one that is asked."""
  load('template=tiny', workdir=tmp_path).score(items(2), 8)
  both = load('template=tiny', 'template={other}', workdir=tmp_path)
  both.score(items(2), 8)
  prefilled = [j.engine.stats.prefilled for j in both._judges]
  assert prefilled[0] == 0 and prefilled[1] > 0


def test_a_panel_costs_what_its_members_cost(load):
  one, other = load('template=tiny'), load('template={other}')
  both = load('template=tiny', 'template={other}')
  (item,) = items(1)
  a, b = one.count_tokens(item), other.count_tokens(item)
  assert both.count_tokens(item) == (a[0] + b[0], a[1] + b[1])


def test_probes_quote_all_templates(load):
  judge = load('template=tiny', 'template={other}')
  problems = world.problems('judge_accept')[:2]
  texts = {
      p.name: p.item[1] for p in hacking.probes_of(frozen(), judge, problems)
  }
  quoted = ' '.join(texts['template/all'])
  assert quoted.count('rate from 1 to 5') == 2


def test_domains_have_panels_of_their_own(load):
  judge = load('readout=direct', 'readout=generate', templates=('code=tiny',))
  (problem, steps), *_ = items(1)
  code = dataclasses.replace(problem, domain='code')
  assert isinstance(judge.of(code), panel.Panel)
  assert judge.of(code) is judge.of(code) is not judge.of(problem)
  got = judge.score([(code, steps), (problem, steps)], 8)
  np.testing.assert_array_equal(got.score[0], got.score[1])
  fewer = judge.with_readout('direct').score([(code, steps)], 8)
  same(fewer, load().score([(code, steps)], 8))


def test_a_panel_is_examined_before_a_run(load, one_device):
  config = frozen('--config.judge.panel=("template=tiny", "readout=direct")',
                  '--config.judge.check_tokens=6000',
                  '--config.judge.min_separation=0.0')
  judge = factory.load(config, one_device)
  problems = world.problems('judge_accept')[:4]
  found = judge_check.before_training(config, judge, problems)
  assert 0 <= found['judge/probe_max_score'] <= 0.5


def test_the_engine_is_as_large_as_the_longest_answer():
  meshes = mesh_lib.meshes(frozen())
  sizes = []
  for entries in (('template=math,readout=direct',),
                  ('template=math,readout=generate',),
                  ('template=math,readout=direct',
                   'template=math,readout=generate')):
    config = frozen(f'--config.judge.panel={entries!r}', config='tiny')
    sizes.append(factory.engine_options(config)[1].max_tokens)
    assert memory.models(config, meshes).judging.max_tokens == sizes[-1]
  assert sizes[0] < sizes[1] == sizes[2]


@pytest.mark.parametrize('flags, message', [
    (['panel=("math",)'], "'math' should be KEY=VALUE"),
    (['panel=("init=x",)'], 'keys: template, readout'),
    (['panel=("template=math,template=code",)'], 'each key once'),
    (['panel=("context=all",)'], 'judge.context=.all.*one of'),
    (['panel=("readout=directly",)'], 'judge.readout'),
    (['combine=min'], 'not read without judge.panel'),
    (['panel=("template=tiny",)', 'templates=("code=tiny",)'],
     'Leave one of them out'),
    (['endpoint_model=m'], 'endpoint_model is not read'),
    (['endpoint=http://h/v1', 'endpoint_model=m', 'readout=generate'],
     'judge.init=.* is not read'),
    (['init=', 'endpoint=http://h/v1', 'endpoint_model=m'],
     "needs judge.readout='generate'"),
    (['init=', 'endpoint=http://h/v1', 'readout=generate'], 'endpoint_model'),
    (['init=', 'endpoint=h:80/v1', 'endpoint_model=m', 'readout=generate'],
     'want http://HOST'),
    (['init=', 'endpoint=http://me:pw@h/v1', 'endpoint_model=m',
      'readout=generate'], 'without a name, password'),
    (['init=', 'endpoint=http://h/v1', 'endpoint_model=m', 'readout=generate',
      ], 'calibration.readouts'),
])  # yapf: disable
def test_wrong_panels_are_refused(flags, message):
  with pytest.raises(InputError, match=message):
    frozen(*(f'--config.judge.{flag}' for flag in flags))


def test_a_rubric_is_missing_for_a_member():
  cfg = dataclasses.replace(frozen().judge,
                            panel=('template=tiny', 'reference=rubric'))
  problem, _ = items(1)[0]
  with pytest.raises(InputError, match='no rubric'):
    factory.check_rubrics(cfg, [problem])
