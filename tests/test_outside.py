"""The RL loop against others': a plain one in torch, and TRL's GRPO loss.

All three get the same random models, in Hugging Face files, the same prompts,
completions and rewards. What torch computes here is written from the formulas
alone, one row at a time, without padding; ours is packed.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='pip install -e ".[test]"')
import tokenizers
import transformers

from exprl_jax.config import Config, Credit, Loss, Optim, Rollout
from exprl_jax.models import hf
from exprl_jax.rl import advantages, experience, learner, optimizer
from exprl_jax.rl import credit as credit_lib
from exprl_jax.rl.credit import Logprobs
from exprl_jax.rl.policy import Policy
from exprl_jax.types import Scores, Trajectory
from tests.experience import close

SIZES = dict(vocab_size=97, num_hidden_layers=3, hidden_size=48,
             intermediate_size=56, num_attention_heads=4, num_key_value_heads=2,
             head_dim=20)
GROUP, COLUMNS, BETA, TEMPERATURE = 4, 20, 0.04, 0.8
AGGREGATIONS = ('token_mean', 'seq_mean_token_mean')
# Policy, before the updates, at the sampler, and the reference: so far apart.
MODELS = {'policy': 0.0, 'old': 0.2, 'sampler': 0.21, 'reference': 0.1}


def make_model(distance):
  """A random Qwen3, moved by `distance` from the one that 0 gives."""
  model = transformers.Qwen3ForCausalLM(
      transformers.Qwen3Config(**SIZES, eos_token_id=None, pad_token_id=None,
                               bos_token_id=None)).eval()
  start = torch.Generator().manual_seed(0)
  way = torch.Generator().manual_seed(1 + int(1000 * distance))
  with torch.no_grad():
    for path, p in model.named_parameters():
      spread = 0.3 if p.ndim == 1 else p.shape[-1]**-0.5
      p.copy_(
          float('norm' in path) + spread *
          (torch.randn(p.shape, generator=start) +
           distance * torch.randn(p.shape, generator=way)))
  return model


@pytest.fixture(scope='module')
def models(tmp_path_factory, one_device):
  """By name: (theirs, our config, our parameters)."""
  return {
      name: ours_of(make_model(distance), tmp_path_factory, one_device)
      for name, distance in MODELS.items()
  }


def ours_of(theirs, tmp_path_factory, mesh):
  folder = tmp_path_factory.mktemp('model')
  theirs.save_pretrained(folder)
  theirs.config._name_or_path = str(folder)
  return theirs, *hf.load(folder, mesh)


@pytest.fixture(scope='module')
def rows():
  """(tokens i32[B, T], valid, completion bool[B, T], rewards [B])."""
  rng = np.random.default_rng(0)
  prompt = np.repeat([2, 5, 7], GROUP)[:, None]
  length = prompt + rng.integers(1, 14, (len(prompt), 1))
  column = np.arange(COLUMNS)[None]
  tokens = rng.integers(0, SIZES['vocab_size'], (len(prompt), COLUMNS))
  return (tokens.astype(np.int32), column
          < length, (column >= prompt) & (column < length),
          rng.random(len(prompt)).round(1))


# The formulas in torch.


def logprobs_of(model, tokens, valid):
  """Of each row's tokens but the first, given those before."""
  out = []
  for row, mask in zip(tokens, valid):
    ids = torch.tensor(row[mask].astype(np.int64))
    logits = model(ids[None]).logits[0, :-1] / TEMPERATURE
    out.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0])
  return out


def advantages_of(rewards):
  groups = torch.tensor(rewards).view(-1, GROUP)
  centred = groups - groups.mean(1, keepdim=True)
  return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten().float()


def loss_of(models, rows, aggregation):
  """The loss of models['policy'], and what happens to its tokens."""
  tokens, valid, completion, rewards = rows
  with torch.no_grad():
    old, sampler, ref = (logprobs_of(models[name][0], tokens, valid)
                         for name in ('old', 'sampler', 'reference'))
  each, facts = [], []
  for i, (lp, a) in enumerate(
      zip(logprobs_of(models['policy'][0], tokens, valid),
          advantages_of(rewards))):
    ratio = (lp - old[i]).exp()
    gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
    if a < 0:
      gain = torch.maximum(gain, 3 * a)
    weight = (old[i] - sampler[i]).exp().clamp(max=2.0)
    k3 = (ref[i] - lp).exp() - (ref[i] - lp) - 1
    trains = torch.tensor(completion[i][valid[i]][1:])
    each.append((-weight * gain + BETA * k3)[trains])
    fact = [
        -weight * gain, k3, (ratio < 0.8) & (a < 0), (ratio > 1.28) & (a > 0),
        (ratio > 3) & (a < 0), weight > 1.999
    ]
    facts.append(torch.stack([x[trains].float() for x in fact]).detach())
  if aggregation == 'token_mean':
    return torch.cat(each).mean(), torch.cat(facts, 1).mean(1)
  return torch.stack([x.mean() for x in each]).mean(), torch.cat([
      torch.stack([x[0].mean() for x in facts]).mean()[None],
      torch.cat(facts, 1).mean(1)[1:]
  ])


# The same, ours.


def config_of(aggregation, **optim):
  return Config(
      steps=1, rollout=Rollout(group_size=GROUP, temperature=TEMPERATURE),
      loss=Loss(kl_coef=BETA, aggregation=aggregation, logprob_chunk=16),
      optim=Optim(updates=2, row_tokens=48, micro_rows=2, **optim))


def examples_of(models, rows, config, mesh):
  tokens, valid, completion, rewards = rows
  trajectories = []
  for row, mask, sampled in zip(tokens, valid, completion):
    n = int(sampled.sum())
    trajectories.append(
        Trajectory(row[mask & ~sampled].astype(np.int32),
                   row[sampled].astype(np.int32), np.zeros(n, np.float32),
                   'eos', (n,)))
  scores = Scores(rewards[:, None].astype(np.float32),
                  np.ones((len(rewards), 1), bool))
  values = np.asarray(
      advantages.assign(scores, scores, np.zeros(len(rewards), bool),
                        advantages.step_tokens(scores.valid, trajectories),
                        cfg=Credit(), group_size=GROUP, padded_tokens=1))
  old, sampler, ref = (Policy(config, models[name][1],
                              mesh).logprobs(models[name][2],
                                             [t.tokens
                                              for t in trajectories])
                       for name in ('old', 'sampler', 'reference'))
  return experience.examples(
      trajectories, Logprobs(rollout=sampler, old=old, ref=ref),
      credit_lib.Credit(np.ones(len(rewards), bool),
                        advantages.spread(values, scores.valid, trajectories)))


@pytest.mark.parametrize(
    'aggregation',
    [AGGREGATIONS[0],
     pytest.param(AGGREGATIONS[1], marks=pytest.mark.slow)])
def test_loss_and_gradient_are_those_of_plain_torch(aggregation, models, rows,
                                                    one_device,
                                                    tmp_path_factory):
  theirs, cfg, params = models['policy']
  theirs.zero_grad()
  loss, facts = loss_of(models, rows, aggregation)
  loss.backward()
  facts = facts.tolist()
  assert min(facts[1:]) > 0, f'a case does not occur: {facts}'
  config = config_of(aggregation)
  examples = examples_of(models, rows, config, one_device)
  grads, logs = learner.batch_gradient(Policy(config, cfg, one_device), params,
                                       examples)
  assert logs['perf/packing_fill'] > 0.5
  names = ('policy/loss', 'policy/ref_kl', 'policy/clip_frac_low',
           'policy/clip_frac_high')
  np.testing.assert_allclose([logs[x] for x in names], facts[:4], rtol=1e-4)
  if aggregation == 'token_mean':
    np.testing.assert_allclose(
        logs['policy/loss'] + BETA * logs['policy/ref_kl'], loss.item(),
        rtol=1e-4)
  close(grads, gradient_of(theirs, tmp_path_factory, one_device), 1e-4)


def gradient_of(model, tmp_path_factory, mesh):
  """A torch model's gradient in our tree: written and read as weights are."""
  copy = make_model(0.0)
  with torch.no_grad():
    for p, q in zip(copy.parameters(), model.parameters()):
      p.copy_(q.grad)
  return ours_of(copy, tmp_path_factory, mesh)[2]


def test_two_updates_are_those_of_plain_torch(models, rows, one_device,
                                              tmp_path_factory):
  """AdamW behind a clipped gradient, each update on half of the groups."""
  _, cfg, params = models['policy']
  # A large epsilon: else a sign decides where the gradient is 0.
  config = config_of('token_mean', lr=0.01, eps=1e-3, clip_norm=0.5)
  examples = examples_of(models, rows, config, one_device)
  state = optimizer.init_state(jax.tree.map(jax.numpy.copy, params),
                               config.optim, 2)
  state, logs = learner.update(Policy(config, cfg, one_device), state, examples,
                               GROUP)
  theirs = make_model(0.0)
  moved = models | {'policy': (theirs, cfg, params)}
  adam = torch.optim.AdamW(theirs.parameters(), 0.01, (0.9, 0.999), 1e-3, 0.01)
  norms = []
  for part in ([0, 2], [1]):  # groups
    adam.zero_grad()
    at = np.concatenate([np.arange(GROUP) + GROUP * g for g in part])
    loss_of(moved, [x[at] for x in rows], 'token_mean')[0].backward()
    norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
    adam.step()
  assert min(norms) > 0.5
  np.testing.assert_allclose(logs['optim/grad_norm'], np.mean(norms), rtol=1e-4)
  want = ours_of(theirs, tmp_path_factory, one_device)[2]
  change = lambda new: jax.tree.map(lambda x, y: x - y, new, params)
  close(change(state.params), change(want), 1e-4)


# TRL.


def make_trainer(models, loss_type, folder):
  """TRL's trainer of the policy; it never trains."""
  trl = pytest.importorskip('trl', reason='pip install -e ".[bench]"')
  import datasets

  words = {str(i): i for i in range(SIZES['vocab_size'])}
  tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(
          tokenizers.models.WordLevel(words, unk_token='0')), pad_token='0',
      eos_token='1')
  model = make_model(0.0)
  # From where the trainer loads its reference.
  model.config._name_or_path = models['reference'][0].config._name_or_path
  trainer = trl.GRPOTrainer(
      model, lambda completions, **_: [0.0] * len(completions),
      trl.GRPOConfig(str(folder), loss_type=loss_type, beta=BETA, epsilon=0.2,
                     epsilon_high=0.28, delta=3.0, temperature=TEMPERATURE,
                     num_generations=GROUP,
                     per_device_train_batch_size=3 * GROUP,
                     use_bias_correction_kl=False, use_cpu=True, bf16=False,
                     gradient_checkpointing=False, report_to='none'),
      datasets.Dataset.from_dict({'prompt': ['2'] * 3 * GROUP}),
      processing_class=tokenizer)
  trainer.current_gradient_accumulation_steps = 1
  return trainer


def trl_batch(trainer, models, rows):
  """What TRL's own rollout would hand to its loss."""
  tokens, valid, completion, rewards = map(torch.tensor, rows)

  def aligned(mask, left):
    order = torch.argsort(mask.int(), dim=1, stable=True, descending=not left)
    width = int(mask.sum(1).max())
    cut = slice(-width, None) if left else slice(width)
    return [x.gather(1, order)[:, cut].long() for x in (tokens * mask, mask)]

  ids, mask = aligned(valid & ~completion, True)
  more, more_mask = aligned(completion, False)

  def logprobs(model):
    with torch.no_grad():
      return trainer._get_per_token_logps_and_entropies(
          model, torch.cat([ids, more], 1), torch.cat([mask, more_mask], 1),
          more.shape[1])[0]

  now = {k: v.clone() for k, v in trainer.model.state_dict().items()}
  trainer.model.load_state_dict(models['old'][0].state_dict())
  old = logprobs(trainer.model)
  trainer.model.load_state_dict(now)
  return {
      'prompt_ids': ids, 'prompt_mask': mask, 'completion_ids': more,
      'completion_mask': more_mask, 'old_per_token_logps': old,
      'ref_per_token_logps': logprobs(trainer.ref_model),
      'advantages': advantages_of(rewards.numpy())
  }


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('loss_type, aggregation',
                         [('bnpo', 'token_mean'),
                          ('grpo', 'seq_mean_token_mean')])
def test_loss_and_gradient_are_those_of_trl(loss_type, aggregation, models,
                                            rows, one_device, tmp_path_factory):
  trainer = make_trainer(models, loss_type, tmp_path_factory.mktemp('trl'))
  loss = trainer.compute_loss(trainer.model, trl_batch(trainer, models, rows))
  loss.backward()
  config = config_of(aggregation)
  examples = examples_of(models | {'sampler': models['old']}, rows, config,
                         one_device)
  grads, logs = learner.batch_gradient(
      Policy(config, models['policy'][1], one_device), models['policy'][2],
      examples)
  if aggregation == 'token_mean':
    np.testing.assert_allclose(
        logs['policy/loss'] + BETA * logs['policy/ref_kl'], loss.item(),
        rtol=1e-4)
  seen = trainer._metrics['eval']  # no dropout
  np.testing.assert_allclose([
      logs['policy/' + x]
      for x in ('ref_kl', 'entropy', 'clip_frac_low', 'clip_frac_high')
  ], [
      seen[x][-1]
      for x in ('kl', 'entropy', 'clip_ratio/low_mean', 'clip_ratio/high_mean')
  ], rtol=1e-4)
  close(grads, gradient_of(trainer.model, tmp_path_factory, one_device), 1e-4)
