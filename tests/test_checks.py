"""Checks of data sets: hostile rows, rows that are fine, and real problems."""

import dataclasses
import json
import random
import tracemalloc

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import checks, problems, stored, validation
from exprl_jax.data.checks import Evaluation, golds, report, text
from exprl_jax.grading.grader import Grade, Grader
from exprl_jax.judge import factory, readouts
from exprl_jax.rl import filters
from exprl_jax.rl.scored import ScoredRollouts, Trace, summary
from exprl_jax.runs import budgets, recipes, setup, validate
from exprl_jax.types import InputError, Problem, Scores, Trajectory
from tests.test_train import GROUPS, run, undocumented

GOOD = Problem('good', 'What is $1 + 2$?', 'One and two are three.', '3')


@pytest.fixture(scope='module')
def grader():
  made = Grader(config_lib.Grading())
  yield made
  made.close()


def problem(**fields):
  return dataclasses.replace(GOOD, **{'id': 'x', 'question': 'Why?'} | fields)


def kinds(problems, grader=None, needs=('solution',), **more):
  """(id, kind) of all findings."""
  rows = [(f'f:{i}', p) for i, p in enumerate(problems, 1)]
  ids = {where: p.id for where, p in rows}
  found = checks.find(rows, needs, grader=grader, **more)
  return sorted((ids[f.where], f.kind) for f in found)


# Single rows.


@pytest.mark.parametrize('fields, kind', [
    (dict(solution=''), 'missing_field'),
    (dict(question='\u200b \ufeff'), 'invisible_text'),
    (dict(solution='\u2060\u200d'), 'invisible_text'),
    (dict(rubric=' \n'), 'invisible_text'),
    (dict(question='a \x08oxed{3}'), 'control_characters'),
    (dict(solution='\x0crac{1}{2}'), 'control_characters'),
    (dict(solution='half \ud800'), 'control_characters'),
    (dict(solution='lost \ufffd'), 'control_characters'),
    (dict(question='Find 1+1.',
          solution='find  1 + 1'), 'solution_is_question'),
    (dict(question='Find it. The answer is $3$.'), 'answer_in_question'),
    (dict(question='Find it. Answer: 3'), 'answer_in_question'),
    (dict(question='The answer is $x$.', answer='$x$'), 'answer_in_question'),
    (dict(question=r'Show that it is \boxed{3.0}.'), 'answer_in_question'),
    (dict(answer=''), 'gold_missing'),
    (dict(answer=r'\boxed{}'), 'gold_missing'),
    (dict(answer='sum_(k=1)^n 1/k'), 'gold_unreadable'),
    (dict(answer='sqrt(3)/3, or equivalently 1/sqrt(3)'), 'gold_alternatives'),
    (dict(answer='5/14 (approximately 35.7%)'), 'gold_alternatives'),
    (dict(answer=r'252 \text{ or equivalently } 2 \cdot 126'),
     'gold_alternatives'),
    (dict(solution=r'So it is \boxed{4}.'), 'gold_not_in_solution'),
    (dict(answer='98 of the values'), 'gold_in_words'),
    (dict(answer='The limit exists and is equal to 2/3'), 'gold_in_words'),
], ids=str)
def test_a_bad_row_is_found(grader, fields, kind):
  assert ('x', kind) in kinds([GOOD, problem(**fields)], grader)


@pytest.mark.parametrize(
    'fields',
    [
        {},
        dict(question='Find 3 numbers, of which the least is 3.'),
        dict(question='The answer is m/n. Find m.', answer='m'),
        dict(question='If the answer is 3.5, what was asked?'),
        dict(question='The answer is 35. Why?'),
        dict(question=r'Give it as \boxed{}. What is 1 + 2?'),
        dict(question='\u4e09\u4e2a\u6570\u7684\u548c\u662f\u591a\u5c11?'),
        dict(question='caf\u00e9\u0301 \U0001f600\n\tx'),
        dict(question='?'),
        dict(solution=r'\boxed{4}? No: \boxed{3.0}'),
        dict(solution='No box, and it is 4.'),
        dict(answer=r'\boxed{3}', solution=r'\boxed{3}'),
        dict(answer='0.5', solution=r'\boxed{\frac{1}{2}}'),
        dict(answer='2(x+1)', solution=r'\boxed{2x + 2}'),
        dict(answer='x=6, y=5'),
        dict(answer='376 and 625'),
        dict(answer='sqrt(2)'),
        dict(answer='No'),
        dict(answer=r'10\text{ cm}'),
        dict(answer=r'5/14 \approx 0.357'),  # the grader takes the first form
        dict(rubric='1. Adds them.'),
    ],
    ids=str)
def test_a_good_row_is_left_alone(grader, fields):
  assert kinds([GOOD, problem(**fields)], grader) == []


def test_hostile_texts_are_checked_in_linear_time(grader):
  """Quadratic in 100,000 characters would be hours."""
  long = 10**5
  rows = [
      problem(id='a', question='answer ' * (long // 7)),
      problem(id='b', question='answer' + ' ' * long, answer='x'),
      problem(id='h', question='answer is 3.5' * (long // 13)),
      problem(id='c', question='c', answer='(' + ' ,' * long + 'or'),
      problem(id='d', question='d', solution='\\boxed{' * (long // 7)),
      problem(id='e', question='\u0301' * long + '\\left' * long),
      problem(id='f', question='f', answer='9' * long),
      problem(id='g', question='1.' * long, solution='1,' * long),
  ]
  assert 'c' in {name for name, _ in kinds(rows, grader)}


def test_the_tokenizer_never_sees_half_a_character():
  budget = checks.Budget('question', 'its prompt', 'key', 0,
                         lambda p: len(p.question.encode()))
  found = kinds([problem(question='half \ud800')], budgets=[budget])
  assert found == [('x', 'control_characters')]


def test_the_domains_grader_decides():
  choice = Grader(config_lib.Grading(domains=('quiz=choice', 'words=text')))
  rows = [
      problem(id='a', domain='quiz', answer='C'),
      problem(id='b', domain='quiz', answer='42', question='B?'),
      problem(id='c', domain='words', answer='98 \\foo values', question='C?')
  ]
  found = kinds(rows, choice)
  choice.close()
  assert found == [('b', 'gold_unreadable'), ('c', 'gold_in_words')]


def test_budgets_name_field_key_and_count():
  budget = checks.Budget('question', 'its prompt', 'rollout.max_prompt_tokens',
                         4, lambda p: len(p.question))
  rows = [('f:1', problem(question='1234')), ('f:2', problem(question='12345'))]
  found = [f for f in checks.find(rows, budgets=[budget]) if 'long' in f.kind]
  assert found == [('too_long', 'f:2', 'question',
                    'its prompt has 5 tokens, rollout.max_prompt_tokens=4')]


# Rows against each other.


@pytest.mark.parametrize('a, b', [
    ('What is 1 + 2?', '  what is\n1+2 '),
    ('Let $x$ be "even".', 'let x be \u201ceven\u201d'),
    (r'Find \left( x \right).', 'Find (x)'),
    ('Find\u200b x', 'find x'),
    ('\uff11+\uff12', '1+2'),
])
def test_questions_that_read_alike_are_equal(a, b):
  assert text.tokens(a) == text.tokens(b)
  found = kinds([problem(id='a', question=a), problem(id='b', question=b)])
  assert ('b', 'duplicate_question') in found


@pytest.mark.parametrize('a, b', [
    ('Find 3+4', 'Find 3-4'),
    ('Find 1.5', 'Find 15'),
    ('Find 1 2', 'Find 12'),
    ('Find 3!', 'Find 3'),
    ('Find x^2', 'Find x_2'),
    ('Is a < b?', 'Is a > b?'),
    ('?', '!'),
])
def test_questions_that_ask_for_something_else_are_not(a, b):
  assert kinds([problem(id='a', question=a), problem(id='b', question=b)]) == []


def test_answers_that_differ_in_form_only_do_not_conflict():
  same = ('0.5', r'\boxed{\frac{1}{2}}', '$1/2$', '.5')
  rows = [problem(id=str(i), answer=a) for i, a in enumerate(same)]
  assert {kind for _, kind in kinds(rows)} == {'duplicate_question'}
  assert golds.form('x + 1') == golds.form('$x+1$') != golds.form('x - 1')


def test_a_conflict_names_both_rows_once():
  rows = [
      problem(id='a', answer='1'),
      problem(id='b', answer='2'),
      problem(id='c', answer='3'),
      problem(id='d', answer='')
  ]
  assert kinds(rows) == [('a', 'conflicting_answers'),
                         ('b', 'conflicting_answers'),
                         ('c', 'conflicting_answers'),
                         ('d', 'duplicate_question')]


def test_the_same_id_is_found():
  rows = [('f:1', problem()), ('f:2', problem(question='Other?'))]
  (found,) = checks.find(rows)
  assert found == ('duplicate_id', 'f:2', 'id', "'x' is the id of f:1, too")


def test_findings_do_not_depend_on_the_size_of_chunks(grader, monkeypatch):
  rows = [
      problem(id='a', answer='1'),
      problem(id='a', answer=''),
      problem(id='b', solution=r'\boxed{7}'),
      problem(id='c', answer='two, or equivalently 2')
  ]
  whole = kinds(rows, grader)
  monkeypatch.setattr(checks, '_CHUNK', 1)
  assert kinds(rows, grader) == whole and len(whole) >= 5


def test_memory_does_not_grow_with_the_length_of_texts(monkeypatch):
  """Texts of a hundred times the length take the same."""

  def peak(words):
    random_words = random.Random(0)

    def rows():
      for i in range(100):
        line = ' '.join(str(random_words.random()) for _ in range(words))
        yield f'f:{i}', Problem(str(i), line, line[::-1], str(i))

    tracemalloc.start()
    list(checks.find(rows(), evaluation=Evaluation([('e:1', GOOD)], 0.5)))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most

  monkeypatch.setattr(checks, '_CHUNK', 4)  # rows whose texts are held
  peak(2)  # fills the caches of regular expressions
  all_texts = 100 * 2 * 1000 * 18
  assert peak(1000) < peak(20) + all_texts / 2


# Overlap of training and evaluation.


def words(rng, n):
  return ' '.join(f'w{rng.integers(50)}' for _ in range(n))


def test_n_grams_are_those_of_words(rng):
  """Hashes are equal where windows of words are, here computed as tuples."""
  for _ in range(20):
    a, b = words(rng, 60).split(), words(rng, 40).split()
    b += a[5:5 + rng.integers(30)]
    plain = [{tuple(x[i:i + 13]) for i in range(len(x) - 12)} for x in (a, b)]
    hashed = [text.n_grams(x) for x in (a, b)]
    assert list(map(len, hashed)) == list(map(len, plain))
    assert len(hashed[0] & hashed[1]) == len(plain[0] & plain[1])
  reverse = text.n_grams(a[::-1])
  assert not reverse & text.n_grams(a)


def overlap(train, held_out, least=0.5):
  index = Evaluation([('e:1', GOOD), ('e:2', problem(question=held_out))],
                     least)
  rows = [('t:1', problem(question=train))]
  return [
      f for f in checks.find(rows, evaluation=index) if 'evaluation' in f.kind
  ]


def test_the_question_of_an_evaluation_problem_is_found(rng):
  question = words(rng, 30)
  (found,) = overlap(f' {question.upper()}.', question)
  assert found.kind == 'in_evaluation' and found.message.endswith('of e:2')
  assert [f.kind for f in overlap('Why', 'why?')] == ['in_evaluation']
  assert overlap('Why not', 'why?') == []


def test_a_similar_question_is_found_and_a_common_phrase_is_not(rng):
  question = words(rng, 60)
  (found,) = overlap(f'Dear student, {question} Good luck!', question)
  assert found.kind == 'overlaps_evaluation'
  assert found.message == '100% of its 13-grams are those of e:2'
  phrase = ('the answer can be written as m/n where m and n are relatively '
            'prime positive integers find m + n')
  a, b = (f'{words(rng, 60)}, {phrase}' for _ in range(2))
  assert overlap(a, b) == []
  assert overlap(a, b, least=0.05)
  assert overlap(words(rng, 60), question) == []


@pytest.mark.parametrize('contamination, error', [
    ('off', set()),
    ('warn', set()),
    ('exact', {'in_evaluation'}),
    ('ngrams', {'in_evaluation', 'overlaps_evaluation'}),
])
def test_contamination_chooses_the_errors(rng, contamination, error):
  question = words(rng, 40)
  config = config_lib.Config(data=config_lib.Data(contamination=contamination))
  rows = [('t:1', problem(id='a', question=question)),
          ('t:2', problem(id='b', question=f'{question} and more'))]
  held_out = [('e:1', problem(question=question))]
  found = validate.check_training(config, rows, held_out, (), None, 9)
  assert set(found.errors) == error
  assert found.bad_rows == len(error) == len(found.rejected)
  assert found.share(
      'in_evaluation',
      'overlaps_evaluation') == (0 if contamination == 'off' else 1)


# Reports.


def test_a_report_survives_json_and_keeps_what_it_may(grader):
  rows = [(f'f:{i}', problem(id=str(i), question=f'{i}?', solution=''))
          for i in range(50)]
  found = checks.check('data.train', rows, errors=['missing_field'],
                       needs=['solution'], keep=3)
  assert report.Report.from_json(json.loads(json.dumps(found.json()))) == found
  assert found.counts == {'missing_field': 50} and found.bad_rows == 50
  assert len(found.examples['missing_field']) == 20
  assert found.rejected == {'f:0', 'f:1', 'f:2'}


def test_gold_answers_are_errors_where_they_decide():
  gold = {k for k, kind in checks.KINDS.items() if kind.level == 'gold'}
  assert len(gold) == 5
  assert gold <= checks.error_kinds(True, 'exact')
  assert not gold & checks.error_kinds(False, 'exact')


# Whole runs.

ROWS = [
    {'id': 'a', 'question': 'a ?', 'solution': 'one', 'answer': '1'},
    {'id': 'b', 'question': 'b ?', 'solution': 'two'},
    {'id': 'c', 'question': 'c ?', 'answer': '3'},
    {'id': 'd', 'question': 'by ' * 99, 'solution': 'four', 'answer': '4'},
]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def command(path, *flags, config='validate'):
  return [
      f'--config=configs/{config}.py', f'--config.data.train={path}', *flags
  ]


def frozen(argv):
  return recipes.freeze(main.parse(argv)[1])


def test_validate_lists_everything_and_fails(tmp_path, capsys):
  path, rejects = write(tmp_path / 'p.jsonl', ROWS), tmp_path / 'out/bad.jsonl'
  with pytest.raises(InputError, match='data.train: 2 of 4 rows have err') as e:
    main.main(
        command(path, '--config.policy.init=asset:tiny_policy',
                '--config.rollout.max_prompt_tokens=48',
                f'--config.data.rejects={rejects}'))
  assert '\n' not in str(e.value) and 'p.jsonl:c: solution' in str(e.value)
  out = capsys.readouterr().out
  assert '4 rows, 2 with errors, 75.0% gradable' in out
  assert 'warning  gold_missing' in out and 'error    too_long' in out
  assert {
      json.loads(line)['where'].split(':')[-1]
      for line in rejects.read_text().splitlines()
  } == {'c', 'd'}


def test_validate_is_content_with_the_tiny_world(capsys):
  main.main(
      command('asset:tiny_problems/train.jsonl',
              '--config.eval.problems=asset:tiny_problems/test.jsonl',
              '--config.policy.init=asset:tiny_policy',
              '--config.judge.init=asset:tiny_judge',
              '--config.judge.template=tiny'))
  out = capsys.readouterr().out
  assert '512 rows, 0 with errors; nothing found' in out
  assert '128 rows, 0 with errors; nothing found' in out


def test_an_evaluation_set_is_never_cut(tmp_path):
  path = write(tmp_path / 'p.jsonl', ROWS[:1])
  held_out = write(tmp_path / 'e.jsonl', ROWS[1:3])
  with pytest.raises(
      InputError, match='eval.problems: 1 of 2 rows have err.*'
      'e.jsonl:b: answer: it is empty'):
    main.main(
        command(path, f'--config.eval.problems={held_out}',
                '--config.data.max_bad=9'))


def test_a_run_leaves_out_so_many_bad_rows_and_no_more(tmp_path, capsys):
  path, rejects = write(tmp_path / 'p.jsonl', ROWS), tmp_path / 'bad.jsonl'
  flags = ['--config.eval.problems=', f'--config.data.rejects={rejects}']
  config = frozen(
      command(path, *flags, '--config.data.max_bad=2', config='tiny'))
  problems = setup.inputs(config).problems
  assert [p.id for p in problems] == ['a', 'b']
  assert [problems[-1]] == problems[1:] and len(problems) == 2
  assert "2 with errors, 75.0% gradable" in capsys.readouterr().out
  # d fits neither the policy's prompt nor the judge's.
  assert [
      json.loads(line)['kind'] for line in rejects.read_text().splitlines()
  ] == ['missing_field', 'too_long', 'too_long']
  config = frozen(
      command(path, *flags, '--config.data.max_bad=1', config='tiny'))
  with pytest.raises(InputError, match='2 of 4 .*, more than data.max_bad=1'):
    setup.inputs(config)
  write(path, ROWS[2:])
  config = frozen(
      command(path, *flags, '--config.data.max_bad=9', config='tiny'))
  with pytest.raises(InputError, match='all of its 2 rows have errors'):
    setup.inputs(config)


@pytest.mark.slow
def test_sft_leaves_out_what_does_not_fit(tmp_path):
  rows = [
      json.loads(line) for line in config_lib.resolve(
          'asset:tiny_problems/train.jsonl').read_text().splitlines()[:8]
  ]
  rows[3]['solution'] = 'by dec 4 ' * 17
  del rows[4]['solution']
  path = write(tmp_path / 'p.jsonl', rows)
  flags = [f'--config.data.train={path}', '--config.steps=1']
  assert run('tiny:sft', tmp_path / 'w', '--config.data.max_bad=2', *flags)
  with pytest.raises(InputError, match='2 of 8 .*1 missing_field, 1 too_long'):
    run('tiny:sft', tmp_path / 'v', '--config.data.max_bad=1', *flags)
  assert not (tmp_path / 'v').exists()


def test_the_judges_budget_is_the_judges_own(one_device):
  """A token less than a problem needs, and the judge refuses it."""
  config = frozen(['--config=configs/tiny.py'])
  question = 'jan is 3 . feb is jan plus 4 . what is feb ?'
  p = Problem('p', question, 'feb = 7', '7')
  need = budgets.judge_prompt(config).tokens(p)
  for limit, status in ((need, readouts.OK), (need - 1, readouts.OVERLONG)):
    judge = factory.load(
        dataclasses.replace(
            config,
            judge=dataclasses.replace(config.judge, max_prompt_tokens=limit,
                                      min_score_probability=0.0)), one_device)
    assert judge.score([(p, ['feb = 7'])], 1).status[0, 0] == status


# Answers are optional where a judge rewards.


def trace(name, status, readable=True):
  trajectory = Trajectory(np.zeros(1, np.int32), np.zeros(3, np.int32),
                          np.zeros(3, np.float32), 'eos', (3,))
  return Trace(Problem(name, name), trajectory, '', [''], Grade(status, ''),
               readable)


def test_accuracy_is_over_gradable_rows():
  """A row without a box says nothing of a gold answer that nobody can read."""
  traces = [
      trace('a', 'correct'),
      trace('a', 'no_answer'),
      trace('b', 'no_answer', readable=False),
      trace('b', 'gold_unparsable')
  ]
  scores = Scores(np.ones((4, 1), np.float32), np.ones((4, 1), bool))
  scored = ScoredRollouts(traces, scores, scores, np.zeros(4, bool), {})
  values = summary(scored)
  assert values['reward/accuracy'] == 0.5
  assert values['grade/gradable_frac'] == 0.5
  nothing = summary(scored._replace(traces=traces[2:] * 2))
  assert np.isnan(nothing['reward/accuracy'])
  assert nothing['grade/gradable_frac'] == 0


def test_solve_rates_are_of_gradable_rows():
  """Problem b cannot be graded: nothing is learned of how hard it is."""
  traces = [
      trace('a', 'correct'),
      trace('a', 'error'),
      trace('b', 'no_answer', readable=False),
      trace('b', 'correct', readable=False),
      trace('c', 'wrong'),
      trace('c', 'timeout')
  ]
  scores = Scores(np.ones((6, 1), np.float32), np.ones((6, 1), bool))
  batch = filters.Batch(
      config_lib.Config(rollout=config_lib.Rollout(group_size=2)))
  batch.add(ScoredRollouts(traces, scores, scores, np.zeros(6, bool), {}))
  solved = batch.result()[1]
  assert [p.id for p in solved.problems] == ['a', 'c']
  assert solved.rates.tolist() == [1, 0]


def test_a_gold_answer_is_readable_by_the_grader_of_its_domain():
  domains = ('quiz=choice', 'words=text', 'code=docs/examples/code_grader.py:'
             'grade')
  made = Grader(config_lib.Grading(domains=domains))
  rows = [('math', '3'), ('math', 'x+1'), ('math', r'5 \& \foo'), ('math', ''),
          ('quiz', '(C)'), ('quiz', '42'), ('words', r'5 \& \foo'),
          ('words', ' '), ('code', '')]
  problems = [
      Problem(str(i), 'q', answer=a, domain=d) for i, (d, a) in enumerate(rows)
  ]
  want = [True, True, False, False, True, False, True, False, True]
  assert made.readable(problems) == want
  made.close()
  assert made.readable(problems) == want  # known by now


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['tiny', 'tiny:self_distill'])
def test_problems_without_an_answer_train(tmp_path, recipe):
  lines = config_lib.resolve(
      'asset:tiny_problems/train.jsonl').read_text().splitlines()[:8]
  rows = [json.loads(line) for line in lines]
  for i, row in enumerate(rows):
    row['answer'] = (row['answer'], '', 'sum_(k=1)^n 1/k')[i % 3]
  path = write(tmp_path / 'p.jsonl', rows)
  found = run(recipe, tmp_path / 'w', *GROUPS, '--config.compare=',
              f'--config.data.train={path}', '--config.steps=1')
  (step,) = [row for row in found if 'policy/loss' in row]
  assert step['grade/gradable_frac'] == 3 / 8
  assert not undocumented(found)
  samples = (tmp_path / 'w/samples/00000001.jsonl').read_text().splitlines()
  answers = {row['id']: row['answer'] for row in rows}
  for row in map(json.loads, samples):
    assert (row['correct'] is None) != answers[row['id']].isdecimal()
  with pytest.raises(InputError, match='has no answer'):
    run('tiny:grpo', tmp_path / 'v', f'--config.data.train={path}')
  with pytest.raises(InputError, match='gold_missing.*gold_unreadable'):
    run('tiny:grpo', tmp_path / 'v', f'--config.data.train={path}',
        '--config.data.max_bad=1')


# Real problems.


def test_open_answers_of_competition_problems_are_counted(tmp_path, grader):
  """CHAMP (Mao et al. 2024): of 270 problems 26 have answers that no grader
  reads, and 8 have one in two forms that none meets."""
  champ = pytest.importorskip('champ_dataset')
  path = f'{list(champ.__path__)[0]}/dataset_files/v0.json'
  with open(path, encoding='utf-8') as file:
    raw = json.load(file)['problems'].values()
  rows = [{
      'id': row['identifier'], 'question': row['_text'],
      'answer': row['_answer'],
      'solution': '\n'.join(step['_text'] for step in row['solution']['steps'])
  } for row in raw]
  config = frozen(command(write(tmp_path / 'champ.jsonl', rows)))
  train = list(validate.located('champ', [Problem(**row) for row in rows]))
  found = validate.check_training(config, train, [], [], grader, 0)
  assert (found.rows, found.bad_rows) == (270, 0)
  assert found.counts['gold_unreadable'] == 26
  assert found.counts['gold_alternatives'] == 8
  assert found.counts.keys() == {
      'gold_unreadable', 'gold_alternatives', 'gold_in_words'
  }
  sparse = dataclasses.replace(config, reward='sparse')
  found = validate.check_training(sparse, train, [], [], grader, 0)
  assert found.bad_rows == 32  # two are both
  # Against itself, every question is found, and found as such.
  found = validate.check_training(config, train, train, [], None, 0)
  assert found.counts == {'in_evaluation': 270}


def test_rows_that_cannot_be_read_count_as_bad(tmp_path, capsys):
  path, rejects = write(tmp_path / 'p.jsonl', ROWS[:2]), tmp_path / 'bad.jsonl'
  path.write_text(path.read_text() + '{"question": \n{"question": 3}\n[1]\n')
  flags = ['--config.eval.problems=', f'--config.data.rejects={rejects}']
  config = frozen(
      command(path, *flags, '--config.data.max_bad=3', config='tiny'))
  assert [p.id for p in setup.inputs(config).problems] == ['a', 'b']
  found = [json.loads(line) for line in rejects.read_text().splitlines()]
  assert [(f['kind'], f['where'].split(':')[-1]) for f in found
         ] == [('unreadable_row', n) for n in '345']
  config = frozen(
      command(path, *flags, '--config.data.max_bad=2', config='tiny'))
  with pytest.raises(InputError,
                     match='p.jsonl:5: .* more than data.max_bad=2'):
    setup.inputs(config)
  with pytest.raises(InputError, match='p.jsonl:3: not JSON'):
    setup.inputs(frozen(command(path, *flags, config='tiny')))
  with pytest.raises(InputError, match='3 of 5 rows have errors'):
    main.main(command(path, config='validate'))
  assert 'error    unreadable_row               3' in capsys.readouterr().out


def test_errors_of_many_rows_are_kept_with_them(tmp_path, monkeypatch):
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path))
  monkeypatch.setattr(stored, 'IN_MEMORY', 1)
  path = write(tmp_path / 'p.jsonl', ROWS[:2])
  path.write_text(path.read_text() + 'x\n')
  for _ in range(2):  # read, then taken from the cache
    rejects = validation.Rejects(1)
    assert len(problems.read_problems(path, rejects=rejects)) == 2
    assert len(rejects.errors) == 1 and 'p.jsonl:3: not' in rejects.errors[0]


def test_a_dry_run_of_validate_needs_no_model(capsys):
  main.main(command('asset:tiny_problems/train.jsonl', '--dry_run'))
  assert '512 rows, 0 with errors' in capsys.readouterr().out
