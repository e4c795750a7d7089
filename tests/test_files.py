"""What a workdir holds survives kills, damage and odd text."""

import gzip
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main, report
from exprl_jax.grading.grader import Grade
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge.readouts import Judgment
from exprl_jax.models import hf
from exprl_jax.report import page as report_page
from exprl_jax.rl.scored import ScoredRollouts, Trace
from exprl_jax.runs import traces
from exprl_jax.runtime import files, jsonl, metrics
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError, Problem, Scores, Trajectory, Unfinished

ODD = 'a\ud800b\x00\x1b[31m\u202e$x^{$ \u2028 \ufffe'
ROWS = [{'step': i, 'a/b': i / 8, 'time/c': 1e-9} for i in range(1, 6)]


def text_of(rows):
  return ''.join(json.dumps(r) + '\n' for r in rows).encode()


def log(workdir, first_step):
  metrics.Log(workdir, 9, first_step).close()


# Metrics.


def test_metrics_cut_at_any_byte_lose_one_row_at_most(tmp_path):
  path, text = tmp_path / 'metrics.jsonl', text_of(ROWS)
  for n in range(len(text) + 1):
    path.write_bytes(text[:n])
    whole = text[:n].count(b'\n') + (text[n:n + 1] == b'\n')
    assert metrics.read(path) == ROWS[:whole]
    opened = metrics.Log(tmp_path, 9, 4)
    opened.write(5, {'x/y': 1.0})
    opened.close()
    assert metrics.read(path) == [*ROWS[:min(whole, 4)], {'step': 5, 'x/y': 1.}]
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize('garbage', [
    b'\xff\xfe\n', b'\x00' * 4096 + b'\n', b'{"step": \n', b'[1]\n', b'null\n',
    b'{"step": "x"}\n', b'{"a/b": 1}\n', b'[' * 100_000 + b'\n'
], ids=lambda x: repr(x[:12]))  # yapf: disable
def test_garbage_is_put_aside_and_the_rows_around_it_stay(
    tmp_path, garbage, capsys):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(text_of(ROWS[:2]) + garbage + text_of(ROWS[2:]))
  assert metrics.read(path) == ROWS
  log(tmp_path, 5)
  assert path.read_bytes() == text_of(ROWS)
  assert (tmp_path / 'metrics.jsonl.bad-1').read_bytes() == garbage
  (line,) = capsys.readouterr().out.splitlines()
  assert '1 damaged lines, kept in metrics.jsonl.bad-1; the 5 others' in line
  path.write_bytes(garbage + text_of(ROWS))
  log(tmp_path, 5)
  assert (tmp_path / 'metrics.jsonl.bad-2').read_bytes() == garbage


def test_a_kill_while_rows_are_dropped_loses_none(tmp_path, monkeypatch):
  """The new file takes the place of the old one when it is whole."""
  path = tmp_path / 'metrics.jsonl'
  for name in ('fsync', 'replace'):
    path.write_bytes(text_of(ROWS))

    def killed(*args):
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(os, name, killed)
      with pytest.raises(KeyboardInterrupt):
        log(tmp_path, 2)
    assert metrics.read(path) == ROWS
  log(tmp_path, 2)
  assert metrics.read(path) == ROWS[:2]


def test_processes_killed_while_they_write_leave_whole_files(tmp_path):
  """SIGKILL at twelve moments: config.json is one version or the other."""
  code = ('import sys; from exprl_jax.runtime import files\n'
          'print("go", flush=True)\n'
          'while True:\n'
          '  for c in "ab": files.write(sys.argv[1], c * 300_000)')
  path = tmp_path / 'config.json'
  for i in range(12):
    child = subprocess.Popen(
        [sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE,
        text=True)
    child.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
      child.wait(0.01 + i * 0.007)
    child.kill()
    child.wait()
    child.stdout.close()
    if path.exists():
      text = path.read_text()
      assert text in ('a' * 300_000, 'b' * 300_000)
  assert path.exists()


# The config.


def test_a_config_cut_anywhere_is_one_line(tmp_path):
  config = config_lib.Config()
  workdir_lib.claim(tmp_path, config)
  text = (tmp_path / 'config.json').read_bytes()
  workdir_lib.claim(tmp_path, config)
  assert (tmp_path / 'config.json').read_bytes() == text
  for n in range(0, len(text) - 2, 7):
    (tmp_path / 'config.json').write_bytes(text[:n])
    with pytest.raises(InputError, match='not the JSON of a config') as e:
      workdir_lib.check(tmp_path, config)
    assert '\n' not in str(e.value)
  (tmp_path / 'config.json').write_bytes(b'[]')
  with pytest.raises(InputError, match='not the JSON of a config'):
    workdir_lib.check(tmp_path, config)


def test_what_a_killed_write_leaves_does_not_fill_a_workdir(tmp_path):
  (tmp_path / '.config.json.0a1b2c3d').write_text('{"ru')
  workdir_lib.claim(tmp_path, config_lib.Config())
  (tmp_path / 'x').mkdir()
  (tmp_path / 'x/notes.txt').write_text('mine')
  with pytest.raises(InputError, match='is not empty and holds no run'):
    workdir_lib.check(tmp_path / 'x', config_lib.Config())


# Judgments.


def judgments(i):
  return [Judgment(i % 5 / 4, 0.5 + i / 1000, 0, ODD * (i % 3))]


def keys(n):
  return [cache_lib.key('k', i) for i in range(n)]


@pytest.fixture(scope='module')
def parts():
  """The parts of three runs, 60 judgments."""

  def make(folder):
    for start in range(0, 60, 20):
      cache = cache_lib.Cache(folder)
      for i in range(start, start + 20, 4):
        cache.put(
            (k, judgments(j))
            for j, k in list(enumerate(keys(60)))[i:i + 4])  # yapf: disable
    return sorted(folder.glob('*.part'))

  return make


def damage(path, kind, rng):
  """Flips a bit, cuts, zeroes, fills with noise, repeats, or deletes."""
  data = bytearray(path.read_bytes())
  start = int(rng.integers(len(data)))
  stop = start + int(rng.integers(1, 512))
  if kind == 'flip':
    data[start] ^= 1 << int(rng.integers(8))
  elif kind == 'cut':
    del data[start:]
  elif kind == 'zero':
    data[start:stop] = bytes(len(data[start:stop]))
  elif kind == 'noise':
    data[start:stop] = rng.bytes(stop - start)
  elif kind == 'splice':  # pieces of two lines become one
    del data[start:stop]
  path.unlink()
  if kind == 'folder':
    path.mkdir()
  elif kind != 'delete':
    path.write_bytes(data)


@pytest.mark.parametrize(
    'kind', ['flip', 'cut', 'zero', 'noise', 'splice', 'folder', 'delete'])
def test_a_damaged_judgment_is_one_that_is_not_there(tmp_path, parts, kind):
  """7 x 15 corruptions: no wrong judgment, no error, the rest is found."""
  rng = np.random.default_rng(len(kind))
  paths = parts(tmp_path / 'judgments')
  saved = {p: p.read_bytes() for p in paths}
  assert len(paths) == 3
  lost = 0
  for _ in range(15):
    damage(paths[rng.integers(3)], kind, rng)
    cache = cache_lib.Cache(tmp_path / 'judgments')
    found = cache.get(keys(60))
    for i, got in enumerate(found):
      assert got is None or got == judgments(i)
    missing = [i for i, got in enumerate(found) if got is None]
    lost += len(missing)
    assert len(missing) <= 20
    cache.put((keys(60)[i], judgments(i)) for i in missing)
    assert cache_lib.Cache(tmp_path / 'judgments').get(
        keys(60)) == [judgments(i) for i in range(60)]
    for p in (tmp_path / 'judgments').iterdir():
      p.rmdir() if p.is_dir() else p.unlink()
    for p, data in saved.items():
      p.write_bytes(data)
  assert lost


def test_two_processes_write_judgments_at_once(tmp_path):
  code = ('import sys; from exprl_jax.judge import cache\n'
          'from exprl_jax.judge.readouts import Judgment\n'
          'c = cache.Cache(sys.argv[1])\n'
          'for i in range(int(sys.argv[2]), 200, 2):\n'
          '  c.put([(cache.key("k", i), [Judgment(i / 200, 1.0, 0)])])')
  children = [
      subprocess.Popen([sys.executable, '-c', code,
                        str(tmp_path),
                        str(i)]) for i in range(2)
  ]
  assert [child.wait() for child in children] == [0, 0]
  found = cache_lib.Cache(tmp_path).get(keys(200))
  assert [x[0].score for x in found] == [i / 200 for i in range(200)]


def test_judgments_that_cannot_be_stored_are_stored_later(
    tmp_path, monkeypatch, capsys):
  cache = cache_lib.Cache(tmp_path / 'j')
  one, two = keys(2)
  with monkeypatch.context() as patch:

    def full(fd):
      raise OSError(28, 'No space left on device')

    patch.setattr(cache_lib.os, 'fsync', full)
    cache.put([(one, judgments(1))])
  assert 'judgments are not stored' in capsys.readouterr().out
  assert cache.get([one]) == [judgments(1)]
  # All or nothing: a part of a step's judgments would change the next run's.
  assert cache_lib.Cache(tmp_path / 'j').get([one]) == [None]
  cache.put([(two, judgments(2))])
  assert cache_lib.Cache(tmp_path / 'j').get([one, two
                                             ]) == [judgments(1),
                                                    judgments(2)]


# Models.


def test_a_model_is_replaced_as_a_whole(small, small_folder, one_device,
                                        monkeypatch):
  cfg, params = small
  (small_folder / 'notes.txt').write_text('mine')
  before = hf.load(small_folder, one_device)[1]
  more = {**params, 'final_norm': params['final_norm'] + 1.0}

  def killed(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(hf.files, 'write_json', killed)  # config.json, the last one
    with pytest.raises(KeyboardInterrupt):
      hf.save(small_folder, cfg, more, small_folder)
  np.testing.assert_array_equal(
      hf.load(small_folder, one_device)[1]['final_norm'], before['final_norm'])
  hf.save(small_folder, cfg, more, small_folder)
  np.testing.assert_array_equal(
      hf.load(small_folder, one_device)[1]['final_norm'], more['final_norm'])
  assert (small_folder / 'notes.txt').read_text() == 'mine'
  hidden = [p.name for p in small_folder.parent.iterdir() if p.name[0] == '.']
  assert not hidden


# Text, and the end of a run.


def test_any_text_is_json_that_reads_back(tmp_path):
  files.write_json(tmp_path / 'a.json', {ODD: [ODD]})
  data = (tmp_path / 'a.json').read_bytes()
  assert data.isascii() and json.loads(data) == {ODD: [ODD]}
  with jsonl.Writer(tmp_path / 'b.jsonl') as write:
    write({'t': ODD})
  assert jsonl.resume(tmp_path / 'b.jsonl') == [{'t': ODD}]


def result(workdir, title=''):
  rows = [
      r | {'eval/truncated_frac': 0.0} |
      {f'eval/pass@{k}{end}': 0.5
       for k in (1, 16)
       for end in ('', '_low', '_high')}
      for r in ROWS
  ]  # yapf: disable
  config = config_lib.Config(eval=config_lib.Eval(ks=(1, 16)))
  return report.Result(title, config, workdir, rows)


def test_torn_samples_and_odd_names_do_not_fail_a_report(tmp_path):
  """A $ is no formula, a torn line no sample."""
  (tmp_path / 'samples').mkdir()
  row = json.dumps({'id': ODD, 'question': ODD, 'correct': None, 'steps': []})
  text = f'{row}\n{{"id": 3}}\n\x00\n{row}\n'
  for n in (0, 1, len(row) - 1, len(row), len(text) - 3, len(text)):
    (tmp_path / 'samples/00000010.jsonl').write_text(text[:n])
    title = ODD.replace('\ud800', '').replace('\x00', '')
    report.finish(tmp_path, [result(tmp_path, title)])
    page = (tmp_path / 'report.html').read_bytes().decode('utf-8')
    assert 'id="plots"' in page


def test_a_report_that_fails_says_what_to_do(tmp_path, monkeypatch):

  def full(*args):
    raise OSError(28, 'No space left\non device')

  monkeypatch.setattr(report_page.files, 'write', full)
  with pytest.raises(Unfinished) as e:
    report.finish(tmp_path, [result(tmp_path, 't')])
  assert '\n' not in str(e.value)
  assert 'report.html was not written (OSError' in str(e.value)
  assert '--config.run=report' in str(e.value)


def scored(n, length):
  """A group of one problem with n traces, of so many characters each."""
  rng = np.random.default_rng(length)
  trajectory = Trajectory(np.arange(3), np.arange(5), np.zeros(5), 'length',
                          (2, 5))
  found = []
  for i in range(n):
    text = rng.bytes(length).hex()
    problem = Problem(f'p{i}', ODD + str(i), 'secret', 'gold')
    found.append(
        Trace(problem, trajectory, text, [text[:9], text[9:]],
              Grade('wrong', '7')))
  scores = Scores(rng.random((n, 2)).astype(np.float32), np.ones((n, 2), bool))
  return ScoredRollouts(found, scores, scores, np.zeros(n, bool), {})


def test_traces_rotate_and_read_back(tmp_path):
  """All numbers are exact; references are apart, once a problem."""
  cfg = config_lib.Traces(keep_gb=3.5e-5)
  rollouts = scored(4, 3000)
  advantage = np.random.default_rng(0).random((4, 2)).astype(np.float32)
  for resumed in range(2):
    kept = traces.Traces(tmp_path, cfg)
    for step in range(1, 6):
      kept.write(5 * resumed + step, rollouts, advantage, scored(1, 5))
    kept.close()
  names = sorted(p.name for p in (tmp_path / 'traces').iterdir())
  assert names == ['00000009.jsonl.gz', '00000010.jsonl.gz', 'references.jsonl']
  text = gzip.decompress((tmp_path / 'traces' / names[1]).read_bytes())
  assert b'secret' not in text and b'gold' not in text
  rows = traces.read(tmp_path / 'traces' / names[1])
  assert [r['trains'] for r in rows] == [True] * 4 + [False]
  for row, trace, value, a in zip(rows, rollouts.traces, rollouts.scores.value,
                                  advantage):
    assert row['question'] == trace.problem.question
    assert (row['text'], row['finish_reason']) == (trace.text, 'length')
    assert (row['length'], row['step_ends']) == (5, [2, 5])
    np.testing.assert_array_equal(
        np.float32([s['score'] for s in row['steps']]), value)
    np.testing.assert_array_equal(
        np.float32([s['advantage'] for s in row['steps']]), a)
  references = jsonl.read(tmp_path / 'traces/references.jsonl').rows
  assert len(references) == 4 and references[0]['solution'] == 'secret'
  assert {r['problem'] for r in rows} == {r['problem'] for r in references}
  off = traces.Traces(tmp_path / 'off', config_lib.Traces(keep_gb=0))
  off.write(1, rollouts, advantage, scored(1, 5))
  off.close()
  assert not (tmp_path / 'off').exists()


def command(workdir, *flags):
  main.main([
      '--config=configs/tiny.py:sft', f'--workdir={workdir}',
      '--config.steps=2', '--config.eval.problems=', *flags
  ])


def test_only_a_training_run_is_reported_again(tmp_path):
  again = '--config.run=report'
  with pytest.raises(InputError, match='--workdir is missing'):
    command('', again)
  with pytest.raises(InputError, match='no such file; --workdir=.* no run'):
    command(tmp_path, again)
  config = config_lib.freeze(config_lib.load('configs/tiny.py:sft'))
  workdir_lib.claim(tmp_path, config)
  with pytest.raises(InputError, match='holds another run: data.batch'):
    command(tmp_path, again, '--config.data.batch=3')
  (tmp_path / 'config.json').write_text('{"run": "plan"}')
  with pytest.raises(InputError, match="run='plan' has no report.html"):
    command(tmp_path, again)


@pytest.mark.slow
def test_a_run_whose_end_fails_is_ended_by_a_report(tmp_path, monkeypatch,
                                                    one_device):

  def full(*args):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(hf.safetensors, 'write_folder', full)
    with pytest.raises(Unfinished, match='model was not written .*No space'):
      command(tmp_path)
  assert (tmp_path / 'report.html').exists()
  assert not (tmp_path / 'model').exists()
  rows = (tmp_path / 'metrics.jsonl').read_bytes()
  command(tmp_path, '--config.run=report')
  assert (tmp_path / 'metrics.jsonl').read_bytes() == rows
  saved = hf.load(tmp_path / 'model', one_device)[1]
  command(tmp_path / 'whole')
  whole = hf.load(tmp_path / 'whole/model', one_device)[1]
  for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(whole)):
    np.testing.assert_array_equal(a, b)
