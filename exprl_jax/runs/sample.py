"""run='sample': prompts from a JSONL file, completions into another."""

from collections.abc import Sequence
import dataclasses
import json
import time

from etils import epath
import jax

from exprl_jax.config import Config, resolve
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import references as source
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.rollout.requests import Request, Sample
from exprl_jax.runtime import jsonl
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One line of the input."""

  id: str
  tokens: list[int]


def sample(config: Config) -> None:
  """Samples `rollout.group_size` completions of every line of sample.prompts.

  Each is written to sample.out as it ends, one JSON object a line: id, sample
  (0..group_size - 1), tokens, text, logprobs, ended. Called again after an
  interruption it samples what is missing; a sample does not depend on when it
  is drawn.

  Raises:
    InputError: a line of either file is not as it should be.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  origin = source.find(config.policy.init)
  tokenizer = Tokenizer(origin.folder)
  width = config.rollout.max_prompt_tokens
  prompts = read_prompts(resolve(config.sample.prompts), tokenizer, width)
  out = epath.Path(config.sample.out)
  there = _already(out)
  _, model, params = source.load(origin, sampling, config.policy.dtype,
                                 frozen=True)
  sampler = sampler_lib.Sampler(config, model, tokenizer, sampling)
  group = config.rollout.group_size
  requests = [
      Request(p.tokens, i * group, group, sampler.sampling)
      for i, p in enumerate(prompts)
  ]
  wanted = [
      r for i, r in enumerate(requests)
      for r in _missing(r, {s for id_, s in there if id_ == prompts[i].id})
  ]
  print(f'{config.policy.init}: {len(prompts)} prompts, {group} samples each' +
        (f', {len(there)} of them in {out} already' if there else ''))
  start, count = time.perf_counter(), 0
  with jsonl.Writer(out) as write:

    def done(id_: int, sample: Sample) -> None:
      nonlocal count
      count += len(sample.tokens)
      i, number = divmod(id_, group)
      write({
          'id': prompts[i].id, 'sample': number,
          'tokens': sample.tokens.tolist(),
          'text': tokenizer.decode(sample.tokens),
          'logprobs': [round(float(x), 6) for x in sample.logprobs],
          'ended': sample.finish_reason
      })

    sampler.engine.generate(params, wanted, jax.random.key(config.seed), done)
  seconds = time.perf_counter() - start
  print(f'{sum(r.samples for r in wanted)} samples, {count} tokens in '
        f'{seconds:.1f} s, {count / seconds:.0f} tokens/s -> {out}')


def read_prompts(path: epath.PathLike, tokenizer: Tokenizer,
                 width: int) -> list[Prompt]:
  """Reads the lines: `id`, and one of `prompt`, `messages` and `tokens`.

  `prompt` is text, taken as it is; `messages` a chat for the model's template.

  Raises:
    InputError: no such file, or a bad line; names file and line.
  """
  file = epath.Path(path)
  if not file.is_file():
    raise InputError(f'config.sample.prompts={path}: no such file')
  prompts, seen = [], set()
  for number, line in enumerate(file.read_text().split('\n'), 1):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    try:
      row = json.loads(line)
      id_ = str(row.get('id', number))
      kinds = [k for k in ('prompt', 'messages', 'tokens') if k in row]
    except (json.JSONDecodeError, AttributeError) as e:
      raise InputError(f'{where}: not a JSON object ({e})') from None
    if len(kinds) != 1:
      raise InputError(f'{where}: has {kinds or "none"} of prompt, messages '
                       'and tokens; give one')
    if id_ in seen:
      raise InputError(f'{where}: id {id_!r} stands there twice')
    seen.add(id_)
    tokens = _tokens(kinds[0], row[kinds[0]], tokenizer, where)
    if not 0 < len(tokens) <= width:
      raise InputError(f'{where}: {len(tokens)} tokens; config.rollout.'
                       f'max_prompt_tokens={width}')
    prompts.append(Prompt(id_, tokens))
  if not prompts:
    raise InputError(f'{path}: no prompts in it')
  return prompts


def _tokens(kind: str, value, tokenizer: Tokenizer, where: str) -> list[int]:
  good = {
      'prompt': lambda: isinstance(value, str),
      'messages': lambda: isinstance(value, list) and all(
          isinstance(m, dict) and {'role', 'content'} <= set(m) for m in value),
      'tokens': lambda: isinstance(value, list) and all(
          isinstance(t, int) and 0 <= t < tokenizer.vocab_size for t in value)
  }
  if not good[kind]():
    raise InputError(
        f'{where}: `{kind}` should be ' + {
            'prompt': 'a text', 'messages': 'a list of {role, content}',
            'tokens': f'token ids below {tokenizer.vocab_size}'
        }[kind])
  if kind == 'tokens':
    return value
  text = value if kind == 'prompt' else tokenizer.render(value)
  return tokenizer.encode(text, special=True)


def _already(out: epath.Path) -> set[tuple[str, int]]:
  """(id, sample) of the lines that are there."""
  there = set()

  def note(row):  # before the file is touched: it may be somebody else's
    there.add((row['id'], row['sample']))
    return True

  try:
    jsonl.resume(out, note)
    return there
  except (ValueError, KeyError):
    raise InputError(f'config.sample.out={out} holds something else; name a '
                     'fresh file') from None


def _missing(request: Request, there: set[int]) -> Sequence[Request]:
  if not there:
    return [request]
  return [
      dataclasses.replace(request, id=request.id + i, samples=1)
      for i in range(request.samples)
      if i not in there
  ]
