"""run='sample': completes the prompts of one JSONL file, into another."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

from etils import epath
import jax

from exprl_jax.config import Config, resolve
from exprl_jax.data import validation
from exprl_jax.data.sources import jsonl as lines
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece
from exprl_jax.models import references as source
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.rollout.requests import Request, Sample, Sampling
from exprl_jax.runtime import inputs, jsonl
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A line of sample.prompts."""

  id: str
  tokens: list[int]


def sample(config: Config) -> None:
  """Samples `rollout.group_size` completions of every line of sample.prompts.

  Appends a row to sample.out as each ends: id, sample (0..group_size - 1),
  tokens, text, logprobs, finish_reason. Resumes; no sample depends on when it
  is drawn.

  Raises:
    InputError: a line of either file is malformed.
  """
  # 1. Read the prompts, and find out which samples exist.
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  origin = source.find_to_sample(config.policy.init)
  tokenizer = Tokenizer(origin.folder, config.rollout.stop_ids)
  prompts = read_prompts(resolve(config.sample.prompts), tokenizer,
                         config.rollout.max_prompt_tokens)
  out = epath.Path(config.sample.out)
  there = _already(out)
  # 2. Load the model.
  _, model, params = source.load(origin, mesh, config.policy.dtype, frozen=True)
  sampler = sampler_lib.Sampler(config, model, tokenizer, mesh)
  group = config.rollout.group_size
  print(f'{config.policy.init}: {len(prompts)} prompts, {group} samples each' +
        (f', {len(there)} of them in {out} already' if there else ''))
  # 3. Draw the missing samples.
  wanted = _wanted(prompts, group, sampler.sampling, there)
  start = time.perf_counter()
  with jsonl.Writer(out) as write:

    def done(id_: int, sample: Sample) -> None:
      write(_row(prompts[id_ // group].id, id_ % group, sample, tokenizer))

    samples = sampler.engine.generate(params, wanted,
                                      jax.random.key(config.seed), done)
  seconds = time.perf_counter() - start
  count = sum(len(s.tokens) for s in samples)
  print(f'{len(samples)} samples, {count} tokens in {seconds:.1f} s, '
        f'{count / seconds:.0f} tokens/s -> {out}')


def _row(id_: str, number: int, sample: Sample,
         tokenizer: Tokenizer) -> dict[str, Any]:
  """Makes a line of sample.out."""
  tokens = sample.tokens.tolist()
  return {
      'id': id_, 'sample': number, 'tokens': tokens,
      'text': tokenizer.decode(tokens),
      'logprobs': [round(float(x), 6) for x in sample.logprobs],
      'finish_reason': sample.finish_reason
  }


def read_prompts(path: epath.PathLike, tokenizer: Tokenizer,
                 width: int) -> list[Prompt]:
  """Reads lines of `id` and one of `prompt`, `messages` and `tokens`.

  `prompt` is a text, used as it is; `messages` a chat, which the model's
  template renders. Without `id` a line is known by its number.

  Args:
    path: the JSONL file.
    tokenizer: the model's.
    width: tokens that a prompt may have.

  Raises:
    InputError: there is no such file, it is empty, or a line is malformed.
      Names file and line.
  """
  file = epath.Path(path)
  if not file.is_file():
    raise InputError(f'config.sample.prompts={path}: no such file')
  prompts: list[Prompt] = []
  seen: set[str] = set()
  for number, where, row in lines.objects(file):
    id_, kind, value = _parse(row, number, where)
    if id_ in seen:
      raise InputError(f'{where}: id {id_!r} stands there twice')
    seen.add(id_)
    tokens = encode(kind, value, tokenizer, where)
    if not 0 < len(tokens) <= width:
      raise InputError(f'{where}: {len(tokens)} tokens; config.rollout.'
                       f'max_prompt_tokens={width}')
    prompts.append(Prompt(id_, tokens))
  if not prompts:
    raise InputError(f'{path}: no prompts in it')
  return prompts


def _parse(row: dict[str, Any], number: int,
           where: str) -> tuple[str, str, Any]:
  """Parses a line; returns its id, the kind of prompt and the prompt."""
  id_ = row.get('id')
  id_ = validation.text(number if id_ in (None, '') else id_, f'{where}: id',
                        may_be_number=True)
  kinds = [k for k in ('prompt', 'messages', 'tokens') if k in row]
  if len(kinds) != 1:
    raise InputError(f'{where}: has {kinds or "none"} of prompt, messages '
                     'and tokens; give one')
  return id_, kinds[0], row[kinds[0]]


def encode(kind: str, value: Any, tokenizer: Tokenizer,
           where: str) -> list[int]:
  """Encodes a prompt.

  Args:
    kind: 'prompt', 'messages' or 'tokens': see `read_prompts`.
    value: the prompt.
    tokenizer: the model's.
    where: it is from, for errors.

  Raises:
    InputError: the value is not what its kind says.
  """
  good = {
      'prompt': lambda: isinstance(value, str),
      'messages': lambda: isinstance(value, list) and all(
          isinstance(m, dict) and all(
              isinstance(m.get(k), str)
              for k in ('role', 'content'))
          for m in value), 'tokens': lambda: isinstance(value, list) and all(
              type(t) is int and 0 <= t < tokenizer.vocab_size for t in value)
  }
  if not good[kind]():
    raise InputError(
        f'{where}: `{kind}` should be ' + {
            'prompt': 'a text', 'messages': 'a list of {role, content}',
            'tokens': f'token ids below {tokenizer.vocab_size}'
        }[kind])
  if kind == 'tokens':
    return value
  try:
    text = value if kind == 'prompt' else tokenizer.render(value)
  except InputError as e:
    raise InputError(f'{where}: {e}') from None
  inputs.encodable(text, f'{where}: `{kind}`')
  return tokenizer.encode_pieces([[Piece(text)]])[0]


def _already(out: epath.Path) -> set[tuple[str, int]]:
  """Returns (id, sample) of the lines that exist."""
  there: set[tuple[str, int]] = set()

  def note(row: dict[str, Any]) -> bool:
    # Fails before `resume` changes a file that holds something else.
    there.add((row['id'], row['sample']))
    return True

  try:
    jsonl.resume(out, note)
    return there
  except (ValueError, KeyError, TypeError):
    raise InputError(f'config.sample.out={out} holds something else; name a '
                     'fresh file') from None


def _wanted(prompts: Sequence[Prompt], group: int, sampling: Sampling,
            there: set[tuple[str, int]]) -> list[Request]:
  """Requests the missing samples. Their ids are prompt * group + sample."""
  wanted: list[Request] = []
  for i, prompt in enumerate(prompts):
    request = Request(prompt.tokens, i * group, group, sampling)
    wanted += _missing(request, {s for id_, s in there if id_ == prompt.id})
  return wanted


def _missing(request: Request, there: set[int]) -> Sequence[Request]:
  """Splits a request into the samples that are not there."""
  if not there:
    return [request]
  return [
      dataclasses.replace(request, id=request.id + i, samples=1)
      for i in range(request.samples)
      if i not in there
  ]
