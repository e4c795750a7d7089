"""Checks of requests before anything is launched."""

from exprl_jax.rollout import protocol
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.requests import Request
from exprl_jax.types import InputError


def check(i: int, request: Request, options: Options,
          can_decode_text: bool) -> None:
  """Checks that the engine can serve a request.

  Args:
    i: its number, for errors.
    request: what to check.
    options: resolved.
    can_decode_text: whether stop strings can be searched for.

  Raises:
    InputError: a prompt is empty, a row does not fit, or a limit is exceeded.
  """
  how, prefix = request.sampling, request.shared_prefix
  ends = len(how.eos_ids) + len(how.stop_ids)
  if len(how.read_ids) > protocol.MAX_READS:
    raise InputError(f'prompt {i}: at most {protocol.MAX_READS} read_ids')
  if prefix and prefix.length > len(request.tokens):
    raise InputError(f'prompt {i} has {len(request.tokens)} tokens, its shared '
                     f'prefix {prefix.length}')
  if request.forks and len(request.forks) != request.samples:
    raise InputError(f'prompt {i}: {len(request.forks)} forks for '
                     f'{request.samples} samples')
  for sample in range(request.samples):
    _check_sample(i, request, sample, options)
  if ends > protocol.MAX_ENDS:
    raise InputError(f'{ends} end and stop tokens; at most {protocol.MAX_ENDS}')
  if how.stop_strings and not can_decode_text:
    raise InputError('stop strings need a tokenizer')


def _check_sample(i: int, request: Request, sample: int,
                  options: Options) -> None:
  at, suffix = request.fork(sample)
  context, budget = at + len(suffix), request.sampling.max_new_tokens
  if not context:
    raise InputError(f'prompt {i} is empty')
  if not 0 <= at <= len(request.tokens):
    raise InputError(f'prompt {i} forks at {at} of {len(request.tokens)}')
  partial = len(request.partial[sample].tokens) if request.partial else 0
  row = context + budget - partial
  if row > options.max_tokens:
    raise InputError(
        f'prompt {i} has {context} tokens; with {budget} new ones that is '
        f'{row} of at most {options.max_tokens}')
  # The prompt prefix and the row's first chunk, but for the full pages that
  # they share; later the row may take over the prefix's pages.
  first_chunk = context - 1 + min(options.chunk, row - context)
  need = (options.pages_for(request.prefix_length()) +
          options.pages_for(first_chunk) -
          request.num_shared(sample) // options.page)
  if need > options.pages - 1:
    raise InputError(f'prompt {i}: sample {sample} and its prompt prefix need '
                     f'{need} pages, {options.config_section}.pages='
                     f'{options.pages}')
