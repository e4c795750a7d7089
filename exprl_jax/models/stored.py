"""How the parameters of a model are stored: names and shapes of tensors."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math

from etils import epath

from exprl_jax.models.config import ModelConfig
from exprl_jax.models.families import FAMILIES
from exprl_jax.models.safetensors import Tensor, open_folder
from exprl_jax.types import InputError, Params

_TEXT = 'language_model.'  # before the names of a multimodal model's text part


@dataclasses.dataclass(frozen=True)
class Part:
  """A parameter, or one layer of it, and the tensors that it is stored as.

  Attributes:
    key: of the parameter.
    layer: None for a parameter outside of the layers.
    names: of the tensors: one, or one for each expert.
    stored_shape: of each tensor.
    shape: of the parameter, without the axis of layers.
  """

  key: str
  layer: int | None
  names: tuple[str, ...]
  stored_shape: tuple[int, ...]
  shape: tuple[int, ...]

  @property
  def has_experts(self) -> bool:
    """Whether the tensors are stacked along a first axis of experts."""
    return len(self.names) > 1

  @property
  def is_transposed(self) -> bool:
    """Matrices are stored [out, in]; the embedding is [V, D] in both."""
    return len(self.stored_shape) == 2 and self.key != 'embedding'

  def nbytes(self, tensors: Mapping[str, Tensor]) -> int:
    """Bytes in the files."""
    itemsize = tensors[self.names[0]].dtype.itemsize
    return len(self.names) * math.prod(self.stored_shape) * itemsize


def stored_parts(cfg: ModelConfig, params: Params) -> Iterator[Part]:
  """Yields every parameter, those of the layers layer by layer.

  Args:
    cfg: its family says how tensors are called.
    params: the parameters, or ShapeDtypeStructs of them.
  """
  names = FAMILIES[cfg.family].tensors
  for key in ('embedding', 'final_norm', 'head'):
    if key in params:
      shape = params[key].shape
      yield Part(key, None, (names[key],), _stored_shape(key, shape), shape)
  for layer in range(cfg.num_layers):
    for key, stacked in params['layers'].items():
      shape = stacked.shape[1:]
      if '{expert}' in names[key]:
        paths = tuple(names[key].format(layer=layer, expert=expert)
                      for expert in range(cfg.num_experts))
        yield Part(key, layer, paths, _stored_shape(key, shape[1:]), shape)
      else:
        yield Part(key, layer, (names[key].format(layer=layer),),
                   _stored_shape(key, shape), shape)


def _stored_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the tensor of a parameter, or of one expert of it.

    embedding [V, D]     as it is
    norms     [D]        as they are
    biases    [N, H]     -> [N * H]
    o         [N, H, D]  -> [D, N * H]
    others    [D, ...]   -> [product of the rest, D]
  """
  size = math.prod(shape)
  if key == 'embedding' or len(shape) == 1:
    return shape
  if key.endswith('_bias'):
    return (size,)
  if key == 'o':
    return (shape[-1], size // shape[-1])
  return (size // shape[0], shape[0])


def open_model(folder: epath.Path, cfg: ModelConfig,
               params: Params) -> tuple[list[Part], Mapping[str, Tensor]]:
  """Opens the files of a model; reads their headers and checks them.

  Returns:
    All parts of the parameters, and the tensors by name.

  Raises:
    InputError: as safetensors.open_folder, or the tensors are not those of the
      model.
  """
  tensors = _text_part(open_folder(folder))
  return _check(folder, cfg, tensors, stored_parts(cfg, params)), tensors


def _text_part(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
  """Returns the tensors by name, of a multimodal model those of its text."""
  text = {
      name.removeprefix(_TEXT): tensor
      for name, tensor in tensors.items()
      if name.startswith(_TEXT)
  }
  return text or tensors


def _check(folder: epath.Path, cfg: ModelConfig, tensors: Mapping[str, Tensor],
           parts: Iterable[Part]) -> list[Part]:
  """Checks that the files have all tensors in their shapes, and no others.

  Raises:
    InputError: names the first tensor that is missing, of another shape, or
      not of the model.
  """
  wanted: set[str] = set()
  out: list[Part] = []
  head = FAMILIES[cfg.family].tensors['head']
  for part in parts:  # as many as are there: the config may want billions
    for name in part.names:
      if name not in tensors:
        raise InputError(f'{folder}: tensor {name} is missing' + (
            '; if the embedding is the head as well, config.json has to say '
            '"tie_word_embeddings": true' if name == head else ''))
      _check_shape(tensors[name], part.stored_shape)
    wanted.update(part.names)
    out.append(part)
  # A tied head may be stored beside the embedding; it is the same matrix.
  ignored = {head} & set(tensors) if cfg.tied_embedding else set()
  for name in ignored:
    _check_shape(tensors[name], (cfg.vocab_size, cfg.embed_dim))
  # Older files store the frequencies of the rotary embedding, too.
  ignored |= {n for n in tensors if n.endswith('.rotary_emb.inv_freq')}
  if extra := sorted(set(tensors) - wanted - ignored):
    raise InputError(f'{tensors[extra[0]]}: the model of config.json does not '
                     f'have it ({len(extra)} such tensors)')
  return out


def _check_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
  if tensor.shape != shape:
    raise InputError(f'{tensor}: shape {tensor.shape}, config.json says '
                     f'{shape}')
