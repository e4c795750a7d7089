"""Self-distillation: what the teacher reads, and the exact KL to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.config import Config, Teacher
from exprl_jax.data import chat
from exprl_jax.models import head, transformer
from exprl_jax.rewards import teacher
from exprl_jax.rl.experience import Example
from exprl_jax.types import InputError, Problem, Trajectory
from tests.experience import close, gradient

PROBLEM = Problem('p', 'max has 2 pens', 'by dec 4', '4')


def with_teacher(template, max_prompt_tokens=16384):
  return Config(teacher=Teacher(template, max_prompt_tokens))


def test_the_teacher_reads_question_and_solution(policy):
  tokenizer = policy[2]
  cfg = with_teacher('asset:tiny_policy/teacher.txt', 20)
  (ids,) = teacher.prompts(tokenizer, [PROBLEM], cfg)
  text = tokenizer.decode(ids, special=True)
  assert 'problem max has 2 pens reference by dec 4' in text
  (own,) = tokenizer.encode_pieces(
      [chat.policy_text(tokenizer, PROBLEM.question)])
  assert 'by' not in tokenizer.decode(own, special=True)
  with pytest.raises(InputError, match='problem p: .* teacher.max_prompt_tok'):
    teacher.prompts(tokenizer, [PROBLEM],
                    with_teacher('asset:tiny_policy/teacher.txt', 3))


def test_a_template_without_its_slots_is_named(policy, tmp_path):
  path = tmp_path / 'teacher.txt'
  path.write_text('solve {question}')
  with pytest.raises(InputError, match=r'teacher.txt: .* \{solution\} once'):
    teacher.prompts(policy[2], [PROBLEM], with_teacher(str(path)))
  with pytest.raises(InputError, match='no such file'):
    teacher.prompts(policy[2], [PROBLEM], with_teacher('nowhere.txt'))


def test_a_question_that_speaks_of_slots_is_left_as_it_is(policy):
  """What looks like a slot inside a question is text."""
  tokenizer = policy[2]
  problem = dataclasses.replace(PROBLEM, question='max {solution} has')
  (ids,) = teacher.prompts(tokenizer, [problem],
                           with_teacher('asset:tiny_policy/teacher.txt', 30))
  assert tokenizer.decode(ids, special=True).count('by dec 4') == 1


def trajectories(rng, vocab=40):
  """Prompts of 2, 4, 3 tokens and completions of 5, 1, 3."""
  draw = lambda n: rng.integers(1, vocab, n).astype(np.int32)
  return [
      Trajectory(draw(p), draw(n), np.zeros(n, np.float32), 'eos')
      for p, n in ((2, 5), (4, 1), (3, 3))
  ]


def test_a_token_scores_what_the_teacher_gives_it_more_than_the_policy(rng):
  """Each sequence has its own prompt; scores are of the completion alone."""
  rows = trajectories(rng)
  behind = [
      np.concatenate([prompt, t.completion]).astype(np.int32)
      for prompt, t in zip(([7], [7, 8, 9], []), rows)
  ]
  # Log-probabilities that name their token: the teacher's twice the policy's.
  scores = teacher.token_scores(lambda tokens: [2.0 * x for x in tokens],
                                behind, rows, [1.0 * t.tokens for t in rows])
  for got, t in zip(scores, rows):
    np.testing.assert_array_equal(got, t.completion)


def examples_with_teacher(rng, prompts):
  rows = trajectories(rng)
  f = lambda n: rng.standard_normal(n).astype(np.float32)
  return rows, [
      Example(t.tokens,
              np.arange(len(t.tokens)) >= len(t.prompt),
              *(f(len(t.tokens))
                for _ in range(4)),
              teacher_tokens=np.array([*prompt, *t.completion], np.int32))
      for t, prompt in zip(rows, prompts)
  ]


def test_a_place_as_wide_as_the_teachers_changes_nothing(
    small, rng, one_device):
  """The teacher's longer prompt moves a row, and none of its numbers."""
  _, both = examples_with_teacher(rng, [[7], [7, 8, 9], [5, 6]])
  alone = [x._replace(teacher_tokens=None) for x in both]
  options = dict(group=1, loss={'tis_cap': 0.0})
  want, values = gradient(small, alone, one_device, **options)
  got, got_values = gradient(small, both, one_device, **options)
  close(got, want)
  np.testing.assert_allclose(got_values['policy/loss'], values['policy/loss'],
                             rtol=1e-5)


@pytest.mark.slow
def test_the_exact_kl_is_the_sum_over_the_vocabulary(small, rng, one_device):
  """Value and gradient, against log-softmaxes of single rows."""
  cfg, params = small
  frozen = transformer.init(cfg, jax.random.key(5))
  prompts = [[7], [7, 8, 9], [5, 6]]
  rows, both = examples_with_teacher(rng, prompts)

  def logp(params, row, count):
    ids = jnp.ones((1, len(row)), jnp.int32)
    hidden = head.hidden_states(cfg, params, jnp.array(row)[None], ids)
    out = jax.nn.log_softmax(head.project(cfg, params, hidden) / 0.8)
    return out[0, len(row) - count - 1:-1]  # the completion's predictions

  def loss(params):
    total = 0.0
    for t, x in zip(rows, both):
      n = len(t.completion)
      p, q = logp(params, t.tokens, n), logp(frozen, x.teacher_tokens, n)
      total += jnp.sum(jnp.exp(p) * (p - q))
    return total / sum(len(t.completion) for t in rows)

  want, want_gradient = jax.jit(jax.value_and_grad(loss))(params)
  got, values = gradient(
      small, both, one_device, frozen, group=1,
      loss={'kind': 'exact_kl', 'kl_coef': 0.0, 'logprob_chunk': 3})
  np.testing.assert_allclose(values['policy/loss'], want, rtol=1e-5)
  close(got, want_gradient, 2e-5)


def test_a_teacher_with_the_same_prompts_teaches_nothing(
    small, rng, one_device):
  rows = trajectories(np.random.default_rng(0))
  _, both = examples_with_teacher(np.random.default_rng(0),
                                  [t.prompt for t in rows])
  got, values = gradient(small, both, one_device, small[1], group=1,
                         loss={'kind': 'exact_kl', 'kl_coef': 0.0})
  assert abs(values['policy/loss']) < 1e-6
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(got)) < 1e-6
