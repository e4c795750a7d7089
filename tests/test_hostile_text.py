"""Text of data and models is shown, never obeyed."""

import base64
import hashlib
import html.parser
import json
import logging
import re

import numpy as np
from plotly import offline
import pytest

from exprl_jax import api, report
from exprl_jax import config as config_lib
from exprl_jax.data import checks
from exprl_jax.evals import judge_traces
from exprl_jax.grading import grader as grading
from exprl_jax.runs import dry_run, progress, sample, validate
from exprl_jax.types import (
    LINES,
    InputError,
    Problem,
    Scores,
    Trajectory,
    printable,
)

# By name: what a terminal, a browser or a UTF-8 file would stumble over.
EVIL = {
    'ansi': '\x1b[2J\x1b]0;title\x07', 'c1': '\x9b31m', 'null': '\0',
    'rtl override': '\u202e', 'isolates': '\u2066\u2069',
    'marks': '\u200f\u061c', 'zero width': '\u200b\ufeff',
    'surrogate': '\ud800', 'backspace': 'a\b\r', 'lines': '\u2028\u2029\x85',
    'tags': '\U000e0041', 'private': '\ue000',
    'script': '</code><script>alert(1)</script>', 'html': '"\'><img src=x>'
}
ALL = ''.join(EVIL.values())
RTL = 'שלום عدد'  # letters that are read from right to left are no attack


def is_safe(text, keep=LINES):
  text.encode()
  return all(c.isprintable() or c in keep for c in text)


@pytest.mark.parametrize('text', EVIL.values(), ids=EVIL)
def test_nothing_invisible_is_left(text):
  shown = printable(text)
  assert shown.isprintable() and shown.encode()
  # What is shown tells what was there.
  literal = "'" + shown.replace("'", "\\'") + "'"
  assert eval(literal) == text
  assert printable(shown) == shown


def test_text_of_all_scripts_stays():
  text = f'{RTL} 漢字\u3000क्षि e\u0301 \U0001f600 ½ \\frac{{1}}{{2}} \xa0x'
  assert printable(text) == text
  assert printable('a\n\tb') == 'a\\n\\tb'
  assert printable('a\n\tb\r', keep=LINES) == 'a\n\tb\\r'


def test_errors_are_one_printable_line():
  e = InputError(f'data.jsonl:3: problem {ALL}\nerror: all is well')
  assert str(e).isprintable() and '\\x1b[2J' in str(e)
  with pytest.raises(InputError, match='it is one line: x$'):
    raise InputError('it is one line: x')


def rollouts():
  question, step = f'What {ALL} {RTL}?', f'So {ALL} it is.'
  problem = Problem(f'id{ALL}', question, answer='1')
  trajectory = Trajectory(np.zeros(1, int), np.zeros(2, int), np.zeros(2),
                          'eos')
  trace = type(
      'Trace', (), {
          'steps': [step], 'gradable': True, 'correct': False,
          'problem': problem, 'trajectory': trajectory
      })
  scores = Scores(np.ones((1, 1)), np.ones((1, 1), bool))
  return type('Scored', (), {'traces': [trace], 'scores': scores})


class Page(html.parser.HTMLParser):
  """Tags of a page, and the text in each kind."""

  def __init__(self):
    super().__init__()
    self.tags, self.inside, self.texts = [], [], {}

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.inside.append(tag)

  def handle_endtag(self, tag):
    while self.inside and self.inside.pop() != tag:
      pass

  def handle_data(self, data):
    self.texts.setdefault(self.inside[-1] if self.inside else '',
                          []).append(data)


@pytest.fixture
def page(tmp_path, capsys):
  """The report of a run whose question, trace and title are hostile."""
  path = tmp_path / 'samples' / '00000001.jsonl'
  progress.write_samples(path, rollouts(), np.ones((1, 1)))
  rows = [{'step': i, 'policy/entropy': 1.0} for i in range(2)]
  report.write(
      tmp_path,
      [report.Result(f'run {ALL} $x', config_lib.Config(), tmp_path, rows)])
  text = (tmp_path / 'report.html').read_bytes().decode()
  return text, capsys.readouterr().out


def test_the_report_shows_hostile_text(page):
  text, printed = page
  text = text.replace(offline.get_plotlyjs(), '')
  assert is_safe(text) and is_safe(printed)
  parsed = Page()
  parsed.feed(text)
  assert 'img' not in [tag for tag, _ in parsed.tags]
  shown = printable(ALL)
  # Traces are data, which the page's own script shows as text in a <bdi>.
  (trace,) = json.loads(parsed.texts['script'][1])[0]['traces']
  assert trace['question'] == f'What {shown} {RTL}?'
  assert trace['steps'][0][0] == f'So {shown} it is.'
  assert not any(shown in t
                 for tag, texts in parsed.texts.items()
                 for t in texts
                 if tag not in ('bdi', 'title', 'script'))


def test_the_report_runs_its_own_scripts_only(page):
  parsed = Page()
  parsed.feed(page[0])
  (policy,) = (a['content']
               for tag, a in parsed.tags
               if a.get('http-equiv') == 'Content-Security-Policy')
  rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
  assert rules['default-src'] == "'none'" and rules['img-src'] == 'data: blob:'
  kinds = [a.get('type') for tag, a in parsed.tags if tag == 'script']
  assert kinds == ['application/json'] * 2 + [None] * 2
  scripts = re.findall(r'<script>(.*?)</script>', page[0], re.S)
  digests = [hashlib.sha256(x.encode()).digest() for x in scripts]
  assert rules['script-src'].split() == [
      f"'sha256-{base64.b64encode(x).decode()}'" for x in digests
  ]
  assert not any(name.startswith('on') for _, a in parsed.tags for name in a)
  # It comes before all that it governs.
  assert [tag for tag, _ in parsed.tags][:3] == ['html', 'meta', 'meta']


def test_samples_are_utf_8(tmp_path):
  path = tmp_path / 'samples' / 'x.jsonl'
  progress.write_samples(path, rollouts(), np.ones((1, 1)))
  (row,) = map(json.loads, path.read_bytes().decode('utf-8').splitlines())
  assert row['id'] == f'id{ALL}'  # exactly, surrogates as escapes


def test_tables_of_validation(capsys):
  found = checks.check('data.train', [(f'f{ALL}', Problem('i', 'q'))],
                       errors=('empty',), needs=['solution'], budgets=[],
                       grader=None, evaluation=None, keep=1)
  shown = validate.table(found)
  assert is_safe(shown) and printable(EVIL['ansi']) in shown


def test_lone_surrogates_are_refused_by_name(tmp_path, policy):
  bad = {
      'question': 'q', 'solution': 's', 'trace': 'so \ud800', 'id': 'i',
      'correct': True
  }
  file = tmp_path / 'traces.jsonl'
  file.write_text(json.dumps(bad))
  config = config_lib.Config(judge=config_lib.Judge(traces=str(file)))
  message = r'trace has the lone surrogate U\+D800 at 3'
  with pytest.raises(InputError, match=f'jsonl:1: {message}'):
    judge_traces.read_traces(config, policy[2])
  with pytest.raises(InputError, match='a trace of problem .i. has the lone'):
    api.score(config_lib.resolve('asset:tiny_judge'),
              [{k: bad[k] for k in ('id', 'question', 'solution')}],
              [[bad['trace']]])
  for row in ({'prompt': 'x\ud800'}, {'prompt': 'x', 'id': '\udfff'}):
    file.write_text(json.dumps(row))
    with pytest.raises(InputError, match='jsonl:1: .* has the lone surrogate'):
      sample.read_prompts(file, policy[2], 99)


def test_dry_runs_show_prompts(capsys):
  dry_run._show_text('policy prompt', f'line 1\n{ALL}')
  shown = capsys.readouterr().out
  assert is_safe(shown) and 'line 1\n' in shown


def test_warnings_of_graders(tmp_path, caplog):
  file = tmp_path / 'plug.py'
  file.write_text('def grade(text, problem): raise ValueError(text)')
  grader = grading.Grader(config_lib.Grading(grader=f'{file}:grade'))
  with caplog.at_level(logging.WARNING):
    grades = grader([(f'x{ALL}', Problem(f'id{ALL}', 'q', answer='1')),
                     ('\ud800', Problem('p', '\udfff', answer='\ud800'))])
  assert [g.status for g in grades] == ['error'] * 2
  assert 'ValueError: x' in caplog.text
  assert all(is_safe(r.getMessage()) for r in caplog.records)
  grader.close()
