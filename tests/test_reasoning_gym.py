import dataclasses
import os
import subprocess
import sys

import pytest

pytest.importorskip('reasoning_gym')

from exprl_jax import config
from exprl_jax.data.problems import read_problems
from exprl_jax.evals import held_out
from exprl_jax.grading import reasoning_gym
from exprl_jax.grading.grader import Grader
from exprl_jax.types import InputError

GRADER = 'exprl_jax.grading.reasoning_gym:grade'
# The scorers compare texts, accept any of many answers, and parse an equation.
FAMILIES = ('chain_sum?min_terms=3&seed=4', 'knights_knaves?size=20',
            'countdown?seed=2')


@pytest.fixture(scope='module')
def grader():
  grader = Grader(config.Grading(grader=GRADER, timeout=30.0))
  yield grader
  grader.close()


def tasks(name, limit=6):
  return list(read_problems(f'reasoning_gym:{name}', ('answer',), limit))


def refused(name, needs=()):
  with pytest.raises(InputError) as e:
    read_problems(f'reasoning_gym:{name}', needs)
  return str(e.value)


@pytest.mark.parametrize('name', FAMILIES)
def test_own_answers_are_correct_and_those_of_other_tasks_are_wrong(
    grader, name):
  problems = tasks(name)
  right = [(rf'So it is \boxed{{{p.answer}}}.', p) for p in problems]
  assert [g.status for g in grader(right)] == ['correct'] * len(problems)
  answers = [p.answer for p in problems]
  wrong = [(rf'\boxed{{{other}}}', p)
           for p in problems
           for other in answers
           if other != p.answer]
  assert wrong and {g.status for g in grader(wrong)} == {'wrong'}


def test_an_answer_may_stand_in_tags_or_in_upright_letters(grader):
  problem = tasks('knights_knaves')[0]
  texts = [
      f'<answer>{problem.answer}</answer>',
      f'<answer>no</answer> wait <answer>\n{problem.answer}\n</answer>',
      rf'\boxed{{\text{{{problem.answer}}}}}',
      f'<think><answer>{problem.answer}</answer></think> none',
      problem.answer,
  ]
  assert [g.status for g in grader([(t, problem) for t in texts])
         ] == ['correct', 'correct', 'correct', 'no_answer', 'no_answer']


def test_partial_credit_is_not_correct(grader):
  # The base scorer gives a part of 1 for an answer that contains the right one.
  problem = tasks('chain_sum')[0]
  library = reasoning_gym.dataset(problem.id.partition('#')[0])
  text = f'{problem.answer} or so'
  assert 0 < library.score_answer(text, library[0]) < 1
  assert grader([(rf'\boxed{{{text}}}', problem)])[0].status == 'wrong'


def test_what_a_scorer_cannot_read_is_unparsable(grader):
  problem = tasks('prime_factorization')[0]
  assert [g.status for g in grader([(r'\boxed{?}', problem)])] == ['unparsable']


def test_several_answers_may_be_right(grader):
  problem = tasks('graph_color?num_colors=4&min_num_vertices=3&'
                  'max_num_vertices=3')[0]
  assert problem.answer == ''  # the library has none
  vertices = '{"0": %d, "1": %d, "2": %d}'
  texts = [
      f'<answer>{vertices % colors}</answer>' for colors in ((1, 2, 3),
                                                             (3, 2, 1), (9, 9,
                                                                         9))
  ]
  grades = grader([(text, problem) for text in texts])
  assert [g.status for g in grades] == ['correct', 'correct', 'wrong']


def test_a_grader_refuses_a_task_that_is_not_the_one_of_the_run(grader):
  problem = dataclasses.replace(tasks('chain_sum')[0], question='1 + 1 = ?')
  assert grader([(r'\boxed{2}', problem)])[0].status == 'error'


def test_tasks_are_a_function_of_their_name():
  name = 'chain_sum?seed=3&min_terms=2'
  first = tasks(name)
  code = ('from exprl_jax.data.problems import read_problems\n'
          f'print([p for p in read_problems("reasoning_gym:{name}", (), 6)])')
  out = subprocess.run([sys.executable, '-c', code], text=True, check=True,
                       capture_output=True,
                       env=os.environ | {'PYTHONHASHSEED': '7'}).stdout
  assert out.strip() == str(first)
  assert tasks('chain_sum?min_terms=2&seed=3') == first  # in any order
  assert tasks('chain_sum?seed=4&min_terms=2') != first


def test_an_id_says_which_task_it_is():
  problem = tasks('gcd?size=9')[3]
  assert problem.id == 'gcd?seed=0&size=9#3'
  assert problem.domain == 'reasoning_gym/gcd'
  name, _, index = problem.id.rpartition('#')
  assert reasoning_gym.dataset(name)[int(index)]['question'] == problem.question


def test_tasks_are_a_sequence_of_the_size_that_is_asked_for():
  problems = read_problems('reasoning_gym:gcd?size=9')
  assert len(problems) == 9 and len(set(p.id for p in problems)) == 9
  assert problems[-1] == problems[8] and problems[2:4] == list(problems)[2:4]
  with pytest.raises(IndexError):
    problems[9]
  assert len(read_problems('reasoning_gym:gcd?size=9', (), 4)) == 4


def test_a_family_is_a_held_out_set():
  cfg = config.Eval(
      problems='sums=reasoning_gym:chain_sum?size=3&seed=1,'
      'gcd=reasoning_gym:gcd', limit=2)
  items = held_out.read_items(cfg)
  assert [item.set for item in items] == ['sums', 'sums', 'gcd', 'gcd']
  assert items[0].problem == tasks('chain_sum?size=3&seed=1')[0]


def test_only_a_family_that_shows_its_working_has_solutions():
  assert "reward='sparse'" in refused('gcd', ('solution',))
  assert read_problems('reasoning_gym:gsm_symbolic', ('solution',))[0].solution


def test_errors_say_what_is_wrong():
  assert 'chain_sum' in refused('chain_sums')
  assert 'min_terms' in refused('chain_sum?min_tems=2')
  assert 'max_terms must be >= min_terms' in refused(
      'chain_sum?min_terms=9&max_terms=2')
  assert 'min_terms' in refused('chain_sum?min_terms')
  assert 'size must be positive' in refused('chain_sum?size=0')
  for family in reasoning_gym.REFUSED:
    assert 'choose another' in refused(family)


def test_a_family_that_depends_on_the_process_needs_a_hash_seed(monkeypatch):
  monkeypatch.delenv('PYTHONHASHSEED', raising=False)
  assert 'PYTHONHASHSEED=0' in refused('ransom_note')
  monkeypatch.setenv('PYTHONHASHSEED', '0')
  assert read_problems('reasoning_gym:ransom_note?size=3')[2].question


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  assert "'exprl_jax[reasoning_gym]'" in refused('gcd')


def test_the_grader_imports_no_jax():
  code = ('import sys; import exprl_jax.grading.reasoning_gym as g; g.families('
          '); assert "jax" not in sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True)


JUNK = ('zzz', '-7', '[]', '{}', 'None', 'a b c', 'I do not know')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the families' own code
def test_no_family_accepts_junk(monkeypatch):
  monkeypatch.setenv('PYTHONHASHSEED', '0')
  for family in reasoning_gym.families():
    if family == 'composite' or family in reasoning_gym.REFUSED:
      continue
    problem = tasks(f'{family}?size=3&seed=5', 1)[0]
    fields = {'id': problem.id, 'question': problem.question}
    for junk in JUNK:
      text = f'<answer>{junk}</answer>'
      assert reasoning_gym.grade(text,
                                 fields)[0] in ('wrong', 'unparsable'), (family,
                                                                         junk)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of the families' own code
def test_own_answers_of_all_families_are_correct(monkeypatch):
  monkeypatch.setenv('PYTHONHASHSEED', '0')
  for family in reasoning_gym.families():
    if family == 'composite' or family in reasoning_gym.REFUSED:
      continue
    for problem in tasks(f'{family}?size=3', 2):
      fields = {'id': problem.id, 'question': problem.question}
      text = f'<answer>{problem.answer}</answer>'
      status, _ = reasoning_gym.grade(text, fields)
      assert status == ('correct' if problem.answer else 'no_answer'), family
