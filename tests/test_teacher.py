"""Self-distillation: what the teacher reads, and the exact KL to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.config import Teacher
from exprl_jax.data import problems as data
from exprl_jax.models import transformer
from exprl_jax.rewards import teacher
from exprl_jax.rl import learner, losses
from exprl_jax.runs import train
from exprl_jax.types import InputError, Problem, Rollout
from tests import test_losses

PROBLEM = Problem('p', 'max has 2 pens', 'by dec 4', '4')


def test_the_teacher_reads_question_and_solution(policy):
  tokenizer = policy[2]
  cfg = Teacher('asset:tiny_policy/teacher.txt', 20)
  (ids,) = teacher.prompts(tokenizer, [PROBLEM], cfg)
  text = tokenizer.decode(ids, special=True)
  assert 'problem max has 2 pens reference by dec 4' in text
  own = data.policy_prompt(tokenizer, PROBLEM.question)
  assert 'by' not in tokenizer.decode(own, special=True)
  with pytest.raises(InputError, match='problem p: .* teacher.max_prompt_tok'):
    teacher.prompts(tokenizer, [PROBLEM],
                    dataclasses.replace(cfg, max_prompt_tokens=3))


def test_a_template_without_its_slots_is_named(policy, tmp_path):
  path = tmp_path / 'teacher.txt'
  path.write_text('solve {question}')
  with pytest.raises(InputError, match=r'teacher.txt: .* \{solution\} once'):
    teacher.prompts(policy[2], [PROBLEM], Teacher(str(path)))
  with pytest.raises(InputError, match='no such file'):
    teacher.prompts(policy[2], [PROBLEM], Teacher('nowhere.txt'))


def test_a_question_that_speaks_of_slots_is_left_as_it_is(policy):
  """What looks like a slot inside a question is text."""
  tokenizer = policy[2]
  problem = dataclasses.replace(PROBLEM, question='max {solution} has')
  (ids,) = teacher.prompts(tokenizer, [problem],
                           Teacher('asset:tiny_policy/teacher.txt', 30))
  assert tokenizer.decode(ids, special=True).count('by dec 4') == 1


def rollout(rng, vocab=40):
  """Three rows: prompts of 2, 4, 3 tokens and completions of 5, 1, 3."""
  tokens = np.zeros((3, 10), np.int32)
  valid, completion = np.zeros((3, 10), bool), np.zeros((3, 10), bool)
  for i, (prompt, length) in enumerate(((2, 5), (4, 1), (3, 3))):
    tokens[i, :prompt + length] = rng.integers(1, vocab, prompt + length)
    valid[i, :prompt + length] = True
    completion[i, prompt:prompt + length] = True
  return Rollout(tokens, valid, completion, np.zeros((3, 10), np.float32),
                 np.ones(3, bool))


def test_completions_are_put_behind_other_prompts(rng):
  r = rollout(rng)
  prompts = [[7], [7, 8, 9], []]
  tokens, valid, completion = teacher.aligned(r, prompts, 4)
  for i, prompt in enumerate(prompts):
    assert tokens[i][valid[i]].tolist() == [
        *prompt, *r.tokens[i][r.completion[i]]
    ]
  assert completion.any(axis=0).argmax() == 4
  values = rng.standard_normal(tokens.shape)
  back = teacher.moved(values, completion, r.completion, np.zeros((3, 10)))
  for i in range(3):
    np.testing.assert_array_equal(back[i][r.completion[i]],
                                  values[i][completion[i]])


def batch_with_teacher(rng, prompts):
  r = rollout(rng)
  f = lambda: rng.standard_normal(r.tokens.shape).astype(np.float32)
  batch = test_losses.Experience(r.tokens, r.valid.astype(np.int32),
                                 r.completion.astype(np.float32), f(), f(), f(),
                                 f())
  rows = teacher.aligned(r, prompts, 4)
  return r, batch, train.with_teacher(batch, r, *rows)


def test_rows_beside_the_teachers_are_the_same_rows(small, rng, one_device):
  """Alignment moves a row, and changes none of its numbers."""
  cfg, params = small
  r, batch, both = batch_with_teacher(rng, [[7], [7, 8, 9], [5, 6]])
  run = test_losses.config(group=1, loss={'tis_cap': 0.0})
  want, values = learner.whole_gradient(run, cfg, params, batch, one_device)
  alone = both._replace(teacher_tokens=None, teacher_ids=None)
  got, got_values = learner.whole_gradient(run, cfg, params, alone, one_device)
  test_losses.close(got, want)
  np.testing.assert_allclose(got_values['policy/loss'], values['policy/loss'],
                             rtol=1e-5)


def test_the_exact_kl_is_the_sum_over_the_vocabulary(small, rng, one_device):
  """Value and gradient, against log-softmaxes of single rows."""
  cfg, params = small
  frozen = transformer.init(cfg, jax.random.key(5))
  prompts = [[7], [7, 8, 9], [5, 6]]
  r, _, both = batch_with_teacher(rng, prompts)

  def logp(params, row, count):
    ids = jnp.ones((1, len(row)), jnp.int32)
    hidden = losses.hidden_states(cfg, params, jnp.array(row)[None], ids)
    out = jax.nn.log_softmax(transformer.project(cfg, params, hidden) / 0.8)
    return out[0, len(row) - count - 1:-1]  # the completion's predictions

  def loss(params):
    total = 0.0
    for i, prompt in enumerate(prompts):
      done = r.tokens[i][r.completion[i]].tolist()
      p = logp(params, r.tokens[i][r.valid[i]].tolist(), len(done))
      q = logp(frozen, [*prompt, *done], len(done))
      total += jnp.sum(jnp.exp(p) * (p - q))
    return total / int(r.completion.sum())

  want, gradient = jax.jit(jax.value_and_grad(loss))(params)
  run = test_losses.config(
      group=1, loss={'kind': 'exact_kl', 'kl_coef': 0.0, 'logprob_chunk': 3})
  got, values = learner.whole_gradient(run, cfg, params, both, one_device,
                                       frozen)
  np.testing.assert_allclose(values['policy/loss'], want, rtol=1e-5)
  test_losses.close(got, gradient, 2e-5)


def test_a_teacher_with_the_same_prompts_teaches_nothing(
    small, rng, one_device):
  cfg, params = small
  r = rollout(rng)
  own = [
      row[m & ~c].tolist() for row, m, c in zip(r.tokens, r.valid, r.completion)
  ]
  _, _, both = batch_with_teacher(np.random.default_rng(0), own)
  run = test_losses.config(group=1, loss={'kind': 'exact_kl', 'kl_coef': 0.0})
  got, values = learner.whole_gradient(run, cfg, params, both, one_device,
                                       params)
  assert abs(values['policy/loss']) < 1e-6
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(got)) < 1e-6
