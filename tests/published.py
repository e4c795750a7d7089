"""Folders of published models, without their weights."""

import json
import pathlib
import shutil

from tests.conftest import make_bpe

CONFIGS = pathlib.Path(__file__).parent / 'configs'


def folder_of(name, folder):
  """A model folder with the config.json of `name`, and a small tokenizer."""
  model = folder / name
  model.mkdir(exist_ok=True)
  source = CONFIGS / f'{name}.json'
  shutil.copy(source, model / 'config.json')
  assert json.loads(source.read_text())['model_type']
  make_bpe(model)
  return model
