"""Pages of prefixes: those of prompts, and those that prompts share."""

import collections
from collections.abc import Sequence

from exprl_jax.rollout.options import Options
from exprl_jax.rollout.pages import Pages
from exprl_jax.rollout.prefill import Copy, Job, Plan
from exprl_jax.rollout.requests import Request, SharedPrefix
from exprl_jax.rollout.rows import PromptPrefix


class Prefixes:
  """Puts prefixes into pages; a shared one once on each device.

  Pages that a round of slot filling no longer needs may yet be read by its
  copies. They are closed at first, and free when `release_closed` is called,
  after the copies.
  """

  def __init__(self, pages: Sequence[Pages], options: Options) -> None:
    """Starts without any prefix.

    Args:
      pages: of each device.
      options: resolved.
    """
    self._pages, self._options = pages, options
    self._pages_of: dict[tuple[int, SharedPrefix], list[int]] = {}
    self._queued: collections.Counter[SharedPrefix | None] = (
        collections.Counter())  # requests in the queue
    self._closed: list[tuple[int, list[int]]] = []

  def enqueue(self, request: Request) -> None:
    """Notes that a request in the queue needs its shared prefix."""
    self._queued[request.shared_prefix] += 1

  def dequeue(self, request: Request) -> None:
    """Notes that a request has left the queue."""
    self._queued[request.shared_prefix] -= 1

  def is_on(self, device: int, prefix: SharedPrefix | None) -> bool:
    """Whether a device has a shared prefix in its pages."""
    return (device, prefix) in self._pages_of

  def open(self, request: Request, device: int,
           plan: Plan) -> PromptPrefix | None:
    """Takes pages for a request's prompt; None: too few are free.

    Args:
      request: whose prompt it is.
      device: where it will be.
      plan: takes the passes and copies that fill the pages.
    """
    # 1. Count the pages of the prompt and of a first chunk.
    pages, length = self._pages[device], request.prefix_length()
    first_chunk = len(request.context(0)) - 1 + min(
        self._options.chunk, request.sampling.max_new_tokens)
    need = self._options.pages_for(max(first_chunk, length)) + 1
    shared, computed = self._open_shared(request, device, need, plan)
    full, partial = divmod(computed, self._options.page)
    if pages.free < need - full:
      self.close_device(device)
      return None
    # 2. Share the full pages of the shared prefix; copy the partial one.
    pages.share(shared[:full])
    own = pages.take(self._options.pages_for(length) - full)
    assert own is not None  # `need` has counted them
    if partial:
      plan.prefix_copies.append(Copy(device, shared[full], own[0]))
    # 3. Compute the rest.
    prefix = PromptPrefix(request, device, shared[:full] + own)
    plan.prompts.append(
        Job(device, request.tokens, computed, length, prefix.pages))
    return prefix

  def _open_shared(self, request: Request, device: int, need: int,
                   plan: Plan) -> tuple[list[int], int]:
    """Finds a request's shared prefix on a device, or puts it there.

    Args:
      request: which may have no shared prefix.
      device: where the request will be.
      need: pages that must stay free behind a new prefix.
      plan: takes the prefill pass of a new prefix.

    Returns:
      The prefix's pages, and how many of the request's tokens are in them;
      ([], 0) where it has no prefix, or the pages do not suffice.
    """
    prefix, pages = request.shared_prefix, self._pages[device]
    if not prefix:
      return [], 0
    if (device, prefix) not in self._pages_of:
      count = self._options.pages_for(prefix.length)
      taken = pages.take(count) if pages.free >= need + count else None
      if taken is None:
        return [], 0
      self._pages_of[device, prefix] = taken
      plan.shared_prefixes.append(
          Job(device, request.tokens, 0, prefix.length, taken))
    return (self._pages_of[device,
                           prefix], min(prefix.length, request.prefix_length()))

  def evict(self, device: int) -> bool:
    """Frees the newest shared prefix of a device; False: it has none."""
    prefixes = [key for key in self._pages_of if key[0] == device]
    if prefixes:
      self._pages[device].release(self._pages_of.pop(prefixes[-1]))
    return bool(prefixes)

  def close_device(self, device: int) -> None:
    """Closes all shared prefixes of a device."""
    for key in [key for key in self._pages_of if key[0] == device]:
      self.close(device, self._pages_of.pop(key))

  def close_unneeded(self) -> None:
    """Closes the shared prefixes that no request in the queue needs."""
    for device, prefix in list(self._pages_of):
      if not self._queued[prefix]:
        self.close(device, self._pages_of.pop((device, prefix)))

  def close(self, device: int, pages: list[int]) -> None:
    """Marks the pages of any prefix, to be freed by `release_closed`."""
    self._closed.append((device, pages))

  def release_closed(self) -> bool:
    """Frees closed pages; returns whether there were any."""
    closed, self._closed = self._closed, []
    for device, pages in closed:
      self._pages[device].release(pages)
    return bool(closed)
