"""LoRA folders of PEFT: the same model as PEFT makes of them."""

import json
import shutil

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from exprl_jax import main
from exprl_jax.models import lora, references
from exprl_jax.models import peft as peft_lib
from exprl_jax.types import InputError
from tests.conftest import POLICY, SMALL_JSON
from tests.test_evaluate import write_run
from tests.test_models import logits

# PEFT reads an old name of transformers'.
pytestmark = pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing')

ALL = [
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'
]
WEIGHTS = 'adapter_model.safetensors'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A random model, written by transformers."""
  folder = tmp_path_factory.mktemp('base')
  torch.manual_seed(0)
  config = transformers.Qwen3Config(**SMALL_JSON)
  transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
  return folder


@pytest.fixture
def adapted(base, tmp_path):
  """Makes adapters that change something; returns (PEFT's model, folder)."""

  def make(**options):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**dict(r=4, lora_alpha=10, target_modules=ALL) |
                             options)
    model = peft.get_peft_model(model, config)
    for name, x in model.named_parameters():
      if 'lora_' in name:
        torch.nn.init.normal_(x, std=0.3)
    model.save_pretrained(tmp_path / 'lora')
    return model.eval(), tmp_path / 'lora'

  return make


@pytest.mark.parametrize('options', [
    dict(),
    dict(use_rslora=True),
    dict(target_modules=['q_proj', 'v_proj']),
    dict(target_modules='all-linear', lora_alpha=3),
    dict(layers_to_transform=[1]),
    dict(rank_pattern={'q_proj': 2, 'layers.1.mlp.up_proj': 7},
         alpha_pattern={'layers.0.self_attn.q_proj': 5, 'down_proj': 1}),
    dict(rank_pattern={'o_proj': 9}, use_rslora=True),
], ids=str)
def test_the_logits_are_those_of_peft(adapted, base, rng, one_device, options):
  theirs, folder = adapted(**options)
  tokens = rng.integers(0, 40, (2, 9))
  references.check(references.find(str(folder)))
  _, model, params = references.load(str(folder), one_device)
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(logits(model, params, tokens), want, atol=2e-5)
  plain = references.load(str(base), one_device)[2]
  assert np.abs(logits(model, plain, tokens) - want).max() > 0.05


def test_frozen_models_are_merged_before_they_are_rounded(adapted, one_device):
  _, folder = adapted()
  exact = references.load(str(folder), one_device)[2]
  frozen = references.load(str(folder), one_device, 'bfloat16', frozen=True,
                           merged=True)[2]
  np.testing.assert_array_equal(frozen['layers']['q'],
                                exact['layers']['q'].astype('bfloat16'))
  assert frozen['layers']['q_norm'].dtype == np.float32


def test_adapters_on_a_mesh(adapted, one_device):
  from exprl_jax.config import Mesh
  from exprl_jax.runtime import mesh as mesh_lib
  _, folder = adapted()
  mesh = mesh_lib.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
  want = references.load(str(folder), one_device)[2]
  got = references.load(str(folder), mesh)[2]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got,
               want)
  assert not got['layers']['q'].sharding.is_fully_replicated


def test_export_writes_what_peft_would(adapted, base, tmp_path):
  shutil.copy(POLICY / 'tokenizer.json', base)
  theirs, folder = adapted(rank_pattern={'down_proj': 2})
  export(folder, tmp_path / 'out')  # in float32, as adapters are merged
  ours = safetensors.numpy.load_file(tmp_path / 'out/model.safetensors')
  merged = theirs.merge_and_unload().state_dict()
  assert ours.keys() == merged.keys()
  for name, x in ours.items():
    np.testing.assert_allclose(x, merged[name].numpy(), atol=1e-6)


def export(source, out, *flags):
  main.main([
      '--config=configs/export.py', f'--config.policy.init={source}',
      f'--config.export.out={out}', *flags
  ])
  return out


def test_adapters_written_are_read_again(small, small_folder, tmp_path, rng,
                                         one_device):
  """Bit for bit by us, and by PEFT: names, shapes and scale."""
  cfg, params = small
  adapters = jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
      lora.init(cfg, params, 3, jax.random.key(0)))
  folder = epath.Path(tmp_path / 'lora')
  peft_lib.save(folder, cfg, adapters, 10 / 3, str(small_folder))
  found = peft_lib.load(folder, cfg)
  want = lora.detach(lora.attach(params, adapters, 10 / 3))[1]
  jax.tree.map(np.testing.assert_array_equal, found, want)
  again = references.find(str(tmp_path / 'lora'))
  model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'lora')
  tokens = rng.integers(0, 40, (2, 9))
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  _, model, ours = references.load(again, one_device, frozen=True)
  np.testing.assert_allclose(logits(model, ours, tokens), theirs, atol=2e-5)
  merged = lora.merge(params, adapters, 10 / 3)
  np.testing.assert_allclose(logits(cfg, merged, tokens), theirs, atol=2e-5)


def test_adapters_are_exported_as_peft_wrote_them(adapted, base, tmp_path):
  shutil.copy(POLICY / 'tokenizer.json', base)
  _, folder = adapted(lora_alpha=4, rank_pattern={'down_proj': 2},
                      alpha_pattern={'down_proj': 2})
  out = export(folder, tmp_path / 'out', '--config.export.format=peft')
  want, got = (safetensors.numpy.load_file(f / WEIGHTS) for f in (folder, out))
  assert got.keys() == want.keys()
  for name, x in got.items():
    np.testing.assert_array_equal(x, want[name])
  raw, new = (json.loads((f / 'adapter_config.json').read_text())
              for f in (folder, out))
  for key in ('peft_type', 'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern',
              'base_model_name_or_path', 'bias'):
    assert new[key] == raw[key], key
  assert set(new) <= set(raw)
  with pytest.raises(InputError, match='has no adapters'):
    export(base, tmp_path / 'no', '--config.export.format=peft')


def test_adapters_of_a_run_are_exported(small, small_folder, tmp_path, rng,
                                        one_device):
  """The export samples as the checkpoint does, bit for bit."""
  adapters = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype),
      lora.init(*small, 3, jax.random.key(0)))
  workdir = tmp_path / 'run'
  workdir.mkdir()
  write_run(workdir, adapters, init=str(small_folder), lora_rank=3,
            lora_alpha=7.0, dtype='bfloat16')
  out = export(workdir, tmp_path / 'out', '--config.export.format=peft')
  raw = json.loads((out / 'adapter_config.json').read_text())
  assert (raw['r'], raw['lora_alpha']) == (3, 7)
  assert raw['base_model_name_or_path'] == str(small_folder)
  got, want = (references.load(str(source), one_device, 'bfloat16',
                               frozen=True)[2] for source in (out, workdir))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def refuses(folder, *parts):
  with pytest.raises(InputError) as e:
    references.check(references.find(str(folder)))
  line = str(e.value)
  assert '\n' not in line
  for part in parts:
    assert part in line, line


@pytest.mark.parametrize('options, name', [
    (dict(use_dora=True), 'use_dora=True'),
    (dict(bias='lora_only'), "bias='lora_only'"),
    (dict(modules_to_save=['lm_head']), "modules_to_save=['lm_head']"),
    (dict(trainable_token_indices=[3]), 'trainable_token_indices'),
    (dict(init_lora_weights='pissa'), "init_lora_weights='pissa'"),
], ids=str)
def test_other_adapters_say_how_to_merge_them(adapted, options, name):
  _, folder = adapted(**options)
  refuses(folder, f'{folder}/adapter_config.json', name, 'merge_and_unload')


@pytest.mark.filterwarnings('ignore:Setting `save_embedding_layers`')
def test_adapters_of_the_head_are_refused(adapted):
  refuses(
      adapted(target_modules=['q_proj', 'lm_head'])[1], 'lm_head',
      'is not of q, k, v, o', 'merge_and_unload')


def test_another_method_is_refused(base, tmp_path):
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  config = peft.IA3Config(target_modules=['k_proj'], feedforward_modules=[])
  peft.get_peft_model(model, config).save_pretrained(tmp_path)
  refuses(tmp_path, "peft_type='IA3'", 'merge_and_unload')


def test_a_base_that_is_not_there_is_named(adapted):
  _, folder = adapted()
  path = folder / 'adapter_config.json'
  raw = json.loads(path.read_text())
  for name in ('/nowhere', 'a/b/c'):
    path.write_text(json.dumps(raw | {'base_model_name_or_path': name}))
    refuses(folder, f'{path}: base_model_name_or_path={name!r}: {name}: no con')


def test_tensors_that_do_not_fit_are_named(adapted):
  _, folder = adapted()
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  name = 'base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight'
  other = tensors | {name: np.zeros((4, 23), np.float32)}
  safetensors.numpy.save_file(other, folder / WEIGHTS)
  refuses(folder, f'{name}: shapes (4, 23) and (32, 4)', '(r, 24)')
  safetensors.numpy.save_file({k: v for k, v in tensors.items() if k != name},
                              folder / WEIGHTS)
  refuses(folder, 'v_proj has one of lora_A and lora_B')
  (folder / WEIGHTS).unlink()
  refuses(folder, f'no {WEIGHTS}', 'safe_serialization=True')


def test_a_judge_cannot_be_adapters(adapted):
  _, folder = adapted()
  with pytest.raises(InputError, match="run='export' it"):
    references.folder_of(str(folder))
