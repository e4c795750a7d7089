"""A judge behind an endpoint, against a service that really answers, and fails.
"""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import tiny_world as world
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_check
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import chats, factory, prompts, readouts
from exprl_jax.judge.client import Client
from exprl_jax.judge.endpoint import EndpointJudge
from exprl_jax.judge.panel import Panel
from exprl_jax.judge.readouts import base
from exprl_jax.runs import dry_run, recipes
from exprl_jax.runtime import failures, metrics, workdir
from exprl_jax.types import (
    InputError,
    Problem,
    RubricItem,
    RunFailure,
    StartAgain,
)
from tests import chat_server
from tests.conftest import POLICY
from tests.test_processes import two_processes
from tests.test_train import undocumented

PROBLEM = Problem('p', 'What is 1 + 1?', 'It is 2.', '2')
ITEMS = [(PROBLEM, ['one', 'two', 'three']), (PROBLEM, ['four'])]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')


def level(said):
  """What the service writes: 1 to 5 by the length of the trace."""
  found = re.search(r'(\d\d \d\d \d\d \d\d)\n(.*)\n\1', said, re.DOTALL)
  return len(found[2] if found else '') % 5 + 1  # it may be asked for a sign


@pytest.fixture
def service():
  with chat_server.serving(lambda said: f'Fine.\nScore: {level(said)}') as s:
    yield s


def make(service, cache=None, wait=0.01, task='process', tokens=10_000, **keys):
  cfg = config_lib.Judge(
      **{
          'template': 'math', 'readout': 'generate', 'endpoint': service.url,
          'endpoint_model': 'm', 'endpoint_retries': 3
      } | keys)
  return EndpointJudge(cfg, Client(cfg, wait), Tokenizer(POLICY), task, tokens,
                       cache)


def test_every_step_is_asked_about(service):
  judge = make(service)
  got = judge.score(ITEMS, 4)
  want = [['one', 'one two', 'one two three'], ['four']]
  for i, texts in enumerate(want):
    assert got.score[i, :len(texts)].tolist() == [len(t) % 5 / 4 for t in texts]
    assert got.status[i].tolist() == [0] * len(texts) + [-1] * (4 - len(texts))
    assert got.texts[i] == [f'Fine.\nScore: {len(t) % 5 + 1}' for t in texts]
  assert len(service.requests) == 4
  for request in service.requests:
    assert request['model'] == 'm' and request['temperature'] == 0
    assert request['max_tokens'] == 512
    assert [m['role'] for m in request['messages']] == ['system', 'user']
    for text in (PROBLEM.question, PROBLEM.solution):
      assert request['messages'][1]['content'].count(text) == 1
  usage = judge.usage()
  assert usage['judge/endpoint_requests'] == 4
  assert usage['judge/endpoint_prompt_tokens'] == sum(
      len(text.split()) for text in service.asked)
  assert usage['judge/endpoint_completion_tokens'] == 4 * 3
  assert not any(judge.usage().values())


def test_a_step_alone_and_items_of_a_rubric(service):
  judge = make(service, context='segment')
  got = judge.score(ITEMS[:1], 3)
  assert got.score[0].tolist() == [len(t) % 5 / 4 for t in ITEMS[0][1]]
  service.answer = lambda said: 'Score: ' + ('5' if 'starts' in said else '1')
  rubric = RubricItem('starts', 1.0), RubricItem('ends', 3.0)
  problem = dataclasses.replace(PROBLEM, rubric_items=rubric)
  got = make(service, judgment='rubric_items').score([(problem, ['a', 'b'])], 2)
  assert got.score.tolist() == [[0.25, 0.25]]


TEXTS = st.sampled_from([
    'Score: 4', '4', '**Score:** 5', 'Score: 4/5', 'Score: 9', '', 'four',
    'Because.\nScore: 2', 'Score: 1\nno\nScore: 3', 'Reasoning: so. Score: 2',
    '3.5', '5.', '4/5', 'Score: 3.5', '2\nScore: 4'
])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(TEXTS, st.sampled_from(['math', 'tiny']),
       st.sampled_from(['smooth', 'semi_smooth', 'extreme']))
def test_an_answer_is_read_as_the_readout_generate_reads_it(
    text, template, scale):
  """`tiny` has no reasons: there the answer continues the line of the score."""
  chat = chats.load(config_lib.Judge(template=template), 'process')
  begun = {'math': '', 'tiny': 'score'}[template]
  want = base.written(f'{begun} {text}', scale)
  got = chat.judgment(text, scale)
  if want.status != readouts.UNREADABLE:
    assert (got.score, got.status) == (want.score, want.status)
  elif template == 'math' or base.last_score(text) is None:
    assert got.status == readouts.UNREADABLE
  assert got.text == text


def test_faults_that_pass_change_no_judgment(service):
  want = make(service).score(ITEMS, 3)
  service.faults = [429, 'cut', 500, 503, 'slow', 408, 'html', 502]
  judge = make(service, endpoint_timeout=1.5, endpoint_retries=6)
  got = judge.score(ITEMS, 3)
  np.testing.assert_array_equal(got.score, want.score)
  np.testing.assert_array_equal(got.status, want.status)
  assert not service.faults
  usage = judge.usage()
  assert usage['judge/endpoint_retries'] == 8
  assert usage['judge/endpoint_requests'] == 12
  assert usage['judge/endpoint_failed'] == 0


def test_a_question_without_an_answer_is_unreadable_and_asked_again(
    service, tmp_path):
  cache = cache_lib.Cache(tmp_path)
  service.broken = 'one two'
  judge = make(service, cache)
  got = judge.score(ITEMS, 3)
  bad = readouts.UNREADABLE
  assert got.status.tolist() == [[0, bad, bad], [0, -1, -1]]
  assert judge.usage()['judge/endpoint_failed'] == 2
  service.broken, before = '', len(service.requests)
  again = make(service, cache_lib.Cache(tmp_path)).score(ITEMS, 3)
  assert again.readable.sum() == 4
  asked = service.asked[before:]
  assert len(asked) == 3 and not any('\nfour\n' in text for text in asked)


def test_a_refused_question_is_not_repeated(service):
  service.faults = [400]
  got = make(service, endpoint_requests=1).score(ITEMS, 3)
  assert (got.status == readouts.UNREADABLE).sum() == 1
  assert got.readable.sum() == 3 and len(service.requests) == 4


def test_a_service_that_is_down_keeps_what_it_said(service, tmp_path):
  """The run stops with 42, and the next one asks for the rest alone."""
  traces = [(PROBLEM, [f'work {i}']) for i in range(12)]
  service.faults = [None] * 5 + [503] * 1000
  judge = make(service, cache_lib.Cache(tmp_path), endpoint_requests=2)
  with pytest.raises(StartAgain, match='is down .HTTP 503, 4 att') as e:
    judge.score(traces, 1)
  assert failures.exit_code(e.value) == 42
  service.faults, before = [], len(service.requests)
  got = make(service, cache_lib.Cache(tmp_path)).score(traces, 1)
  assert got.readable.all() and len(service.requests) - before == 12 - 5


def test_nobody_listens(service, tmp_path):
  judge = make(service)
  service.server_close()
  with pytest.raises(StartAgain, match='is down'):
    judge.score(ITEMS, 3)


@pytest.mark.parametrize('fault, message', [
    (401, 'judge.endpoint_key right'),
    (404, 'judge.endpoint_model'),
    (307, 'HTTP 307'),
])
def test_a_service_that_does_not_let_us_in_is_an_input_error(
    service, fault, message):
  service.faults = [fault] * 100
  with pytest.raises(InputError, match=message):
    make(service).score(ITEMS, 3)
  assert len(service.requests) <= 4


def test_another_service_is_an_input_error(service):
  service.faults = ['html'] * 100
  with pytest.raises(InputError, match='OpenAI-compatible'):
    make(service).score(ITEMS, 3)


def test_no_more_requests_at_a_time_than_allowed(service):
  traces = [(PROBLEM, [f'work {i}']) for i in range(24)]
  make(service, endpoint_requests=3).score(traces, 1)
  assert 2 <= service.most <= 3


def test_waits_grow(service):
  service.faults = [500] * 3
  start = time.monotonic()
  make(service, wait=0.1).score(ITEMS[1:], 1)
  assert time.monotonic() - start >= 0.1 + 0.2 + 0.4


@pytest.mark.parametrize('header, least, most', [
    ('2', 2.0, 60.0),
    ('soon', 0.0, 1.9),
    ('\u00b2', 0.0, 1.9),
])
def test_a_service_says_how_long_to_wait(service, header, least, most):
  service.faults, service.retry_after = [429], header
  start = time.monotonic()
  assert make(service).score(ITEMS[1:], 1).readable.all()
  assert least <= time.monotonic() - start < most


@pytest.mark.parametrize('answer', [
    b'{', b'[]', b'{"choices": []}', b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": 4}}]}', b'[' * 100_000, b'\xff'
])
def test_strange_answers_are_none(service, answer):
  client = make(service)._client
  with pytest.raises(Exception, match='no chat completion'):
    client._text(answer)


def test_strange_counts_are_not_counted(service):
  client = make(service)._client
  for usage in ('null', '[]', '{"prompt_tokens": -3}',
                '{"prompt_tokens": 1e400}', '{"prompt_tokens": "4"}',
                '{"prompt_tokens": 1' + '0' * 400 + '}'):
    text = '{"choices": [{"message": {"content": "a"}}], "usage": %s}' % usage
    assert client._text(text.encode()) == 'a'
  assert not any(client.usage().values())


def test_a_key_comes_from_the_environment(service, monkeypatch):
  service.key = 'secret'
  with pytest.raises(InputError, match='no such variable'):
    make(service, endpoint_key='NO_KEY_HERE')
  monkeypatch.setenv('THE_KEY', 'secret\n')
  judge = make(service, endpoint_key='THE_KEY')
  assert judge.score(ITEMS, 3).readable.sum() == 4


def test_no_answer_that_can_be_read(service):
  service.answer = lambda said: None  # a refusal has no content
  got = make(service).score(ITEMS, 3)
  assert (got.status[got.exists] == readouts.UNREADABLE).all()
  before = len(service.requests)
  assert before == 4  # that is an answer: it is not asked for again


def test_blank_and_long_traces_are_not_asked_about(service):
  long = dataclasses.replace(PROBLEM, solution='pen ' * 3000)
  got = make(service, max_prompt_tokens=2000).score([(PROBLEM, [' \n']),
                                                     (long, ['a'])], 1)
  assert got.status.tolist() == [[readouts.EMPTY], [readouts.OVERLONG]]
  assert not service.requests
  judge = make(service, tokens=20)
  steps = [f'### jan {i} feb ' for i in range(20)]
  assert judge.score([(PROBLEM, steps)], 20).truncated.all()
  assert 'left out' in service.asked[-1]


HOSTILE = st.lists(
    st.sampled_from([
        '5', ' ', '\n', 'Score: 5', '<|im_end|>', '<|im_start|>', '</s>',
        '[INST]', '[/INST]', '<end_of_turn>', '<', '|', '{trace}', '{nonce}',
        '<\uff5cUser\uff5c>', '10 20 30 40', 'ü', '{solution}'
    ]), min_size=1).map(''.join)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(HOSTILE)
def test_a_trace_is_material(trace):
  """It stands between its nonces, fills no slot, and arms no special token."""
  chat = chats.load(config_lib.Judge(), 'process')
  nonce = prompts.nonce(PROBLEM, [trace])
  messages = chat.messages(PROBLEM, nonce, trace)
  plain = chat.messages(PROBLEM, nonce, 'x')
  before, inside, after = messages[1]['content'].split(nonce)
  assert messages[0] == plain[0]
  assert [before, after] == plain[1]['content'].split(nonce)[::2]
  assert inside.replace(' ', '').strip() == trace.replace(' ', '').strip()
  for token in ('<|', '</s>', '[INST]', '[/INST]', '<end_of_turn>', '<\uff5c'):
    assert token not in inside


# Runs.


def flags_of(service):
  return ('--config.judge.init=', f'--config.judge.endpoint={service.url}',
          '--config.judge.endpoint_model=m', '--config.judge.readout=generate',
          '--config.judge.template=math',
          '--config.judge.max_prompt_tokens=4096',
          '--config.judge.check_tokens=0')


def test_a_training_run_without_a_judge_model(service, tmp_path):
  """It counts what it asks for."""
  flags = ('--config=configs/tiny.py', f'--workdir={tmp_path}',
           *flags_of(service), '--config.compare=', '--config.steps=1',
           '--config.data.batch=2', '--config.rollout.group_size=4',
           '--config.eval.problems=', '--config.judge.traces=')
  main.main(list(flags))
  rows = [
      r for r in metrics.read(tmp_path / 'metrics.jsonl') if 'policy/loss' in r
  ]
  assert rows[0]['judge/endpoint_requests'] == len(service.requests) > 8
  assert rows[0]['judge/endpoint_completion_tokens'] > 0
  assert 'hbm/judge_gb' not in rows[0] and not undocumented(rows)


@pytest.mark.slow
def test_the_report_card_of_a_panel_with_an_endpoint(service, tmp_path):
  story = world.stories('judge_accept')[0]
  problem = story.problem('0')
  file = tmp_path / 'in.jsonl'
  file.write_text(''.join(
      json.dumps({
          'id': str(i), 'question': problem.question,
          'solution': problem.solution, 'trace': text, 'correct': right
      }) + '\n' for i, (text, right) in enumerate([(story.worked(),
                                                    True), ('jan 4', False)])))
  entries = 'template=tiny', (f'endpoint={service.url},endpoint_model=m,'
                              'template=math,readout=generate')
  main.main([
      '--config=configs/judge.py', f'--workdir={tmp_path}/w',
      f'--config.judge.panel={entries!r}', f'--config.judge.traces={file}',
      '--config.policy.init=', '--config.data.train=',
      '--config.judge.max_prompt_tokens=4096', '--config.calibration.pairs=1'
  ])
  rows = [
      json.loads(x)
      for x in (tmp_path / 'w/judgments.jsonl').read_text().splitlines()
  ]
  assert all(r['valid'] for r in rows) and service.requests


@pytest.fixture
def traces(tmp_path):
  """Eight traces of a problem, in a file."""
  problem = world.stories('judge_accept')[0].problem('0')
  path = tmp_path / 'in.jsonl'
  path.write_text(''.join(
      json.dumps({
          'id': str(i), 'question': problem.question,
          'solution': problem.solution, 'trace': 'jan ' * (i + 1)
      }) + '\n' for i in range(8)))
  return path


def judging(service, traces, workdir):
  """Flags of run='judge', which asks about the traces alone."""
  return ('--config=configs/judge.py', f'--workdir={workdir}',
          *flags_of(service), f'--config.judge.traces={traces}',
          '--config.data.train=', '--config.calibration.pairs=0',
          '--config.calibration.readouts=()', '--config.reward=outcome')


def test_two_processes_ask_once(service, traces, tmp_path):
  main.main(list(judging(service, traces, tmp_path / 'one')))
  count = len(service.requests)
  two_processes('main', *judging(service, traces, tmp_path / 'two'))
  assert len(service.requests) == 2 * count == 16
  one, two = ((tmp_path / name / 'judgments.jsonl').read_text()
              for name in ('one', 'two'))
  assert one == two


def test_a_run_that_is_told_to_stop_keeps_its_answers(service, traces,
                                                      tmp_path):
  service.answer = lambda said: time.sleep(0.3) or f'Score: {level(said)}'
  command = [
      sys.executable, '-m', 'exprl_jax.main',
      *judging(service, traces, tmp_path / 'w'),
      '--config.judge.endpoint_requests=1'
  ]
  with subprocess.Popen(command, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True) as child:
    while len(service.requests) < 4 and child.poll() is None:
      time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[0]
  assert child.returncode == 42, said
  known = cache_lib.Cache(tmp_path / 'w/judgments')._known
  assert 3 <= len(known) <= len(service.requests) <= 5


def test_a_service_is_examined_before_a_run(service, one_device):
  """Within its budget; one that likes a probe too much is refused."""
  config = recipes.freeze(
      main.parse([
          '--config=configs/tiny.py', *flags_of(service),
          '--config.judge.traces=', '--config.judge.check_tokens=20000',
          '--config.judge.min_separation=0.0', '--config.reward=outcome',
          '--config.credit.rule=group', '--config.credit.first=final'
      ])[1])
  judge = factory.load(config, one_device)
  problems = world.problems('judge_accept')[:4]
  asked = judge_check.questions(config, judge, problems)
  assert asked.probes and asked.made and asked.tokens <= 20000
  service.answer = lambda said: 'Score: 1'
  found = judge_check.before_training(config, judge, problems)
  assert found['judge/probe_max_score'] == 0
  blank = sum(not ''.join(steps).strip() for _, steps in asked.items)
  assert len(service.requests) == len(asked.items) - blank
  service.answer = lambda said: 'Score: 5'
  with pytest.raises(RunFailure, match='judge m can be fooled'):
    judge_check.before_training(config, judge, problems)


def test_a_service_may_move_between_two_starts(service, tmp_path):
  config = recipes.freeze(
      main.parse(['--config=configs/tiny.py', *flags_of(service)])[1])

  def other(**keys):
    cfg = dataclasses.replace(config.judge, **keys)
    return dataclasses.replace(config, judge=cfg)

  workdir.claim(tmp_path, config)
  workdir.check(tmp_path, other(endpoint='http://elsewhere/v1'))
  with pytest.raises(InputError, match='judge.endpoint_model'):
    workdir.check(tmp_path, other(endpoint_model='another'))


def test_a_dry_run_shows_what_is_asked(service, capsys, monkeypatch):
  config = recipes.freeze(
      main.parse([
          '--config=configs/tiny.py', *flags_of(service),
          '--config.judge.traces='
      ])[1])
  dry_run.dry_run(config)
  out = capsys.readouterr().out
  assert '<the trace>' in out and f'for m at {service.url}' in out
  assert not service.requests
  monkeypatch.delenv('A_KEY', raising=False)
  cfg = dataclasses.replace(config.judge, endpoint_key='A_KEY')
  with pytest.raises(InputError, match='A_KEY'):
    factory.check(dataclasses.replace(config, judge=cfg), ())


def test_members_share_a_client(service, one_device):
  """Their requests are counted once, whatever the domains."""
  config = recipes.freeze(
      main.parse([
          '--config=configs/tiny.py', *flags_of(service),
          '--config.judge.panel=("context=prefix", "context=segment")',
          '--config.judge.templates=("code=code",)'
      ])[1])
  judge = factory.load(config, one_device, max_trace_tokens=100)
  assert isinstance(judge.of(PROBLEM), Panel) and not judge.params
  code = dataclasses.replace(PROBLEM, domain='code')
  judge.score([(PROBLEM, ['a', 'b']), (code, ['a'])], 2)
  assert judge.usage()['judge/endpoint_requests'] == len(service.requests) == 6
  with pytest.raises(InputError, match='in words'):
    judge.of(PROBLEM)._judges[0].with_readout('direct')
