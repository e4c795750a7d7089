"""Models of the Hugging Face Hub."""

from etils import epath

from exprl_jax.models import config, peft
from exprl_jax.runtime import hub
from exprl_jax.types import InputError

_SMALL_FILES = ('config.json', 'generation_config.json', 'adapter_config.json',
                'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json',
                'special_tokens_map.json', 'added_tokens.json',
                'chat_template.jinja', 'model.safetensors.index.json')
# Not consolidated.safetensors and the like: the same weights once more.
_WEIGHTS = ('model*.safetensors', 'adapter_model.safetensors')


def model(source: str, id_: hub.Id, weights: bool = True) -> epath.Path:
  """Downloads a model, or adapters; what is in the cache is not downloaded.

  config.json comes first: a model that is not implemented is refused before
  its weights are downloaded.

  Args:
    source: as the config says it, for messages.
    id_: what it names.
    weights: download them, too; a plan does without.

  Returns:
    The folder, in the cache.

  Raises:
    InputError: as hub.snapshot, or a model that is not implemented.
  """
  try:
    folder = hub.snapshot(*id_, _SMALL_FILES)
    if not peft.is_adapters(folder):
      if not (folder / 'config.json').is_file():
        raise InputError(f'model {id_.repo} of the Hub has no config.json; '
                         'name a repository in the format of transformers')
      config.read_config(folder)
    if not weights:
      return folder
    # By its commit: a branch may move meanwhile.
    folder = hub.snapshot(id_.repo, folder.name, (*_SMALL_FILES, *_WEIGHTS))
    if not any(folder.glob('*.safetensors')):
      raise InputError(
          f'model {id_.repo} of the Hub has no *.safetensors; convert it with '
          f"transformers: AutoModelForCausalLM.from_pretrained('{id_.repo}')"
          '.save_pretrained(OUT, safe_serialization=True)')
    return folder
  except InputError as e:
    raise InputError(f'{source}: there is no such folder, and {e}') from None
