"""Which pages are in use, and by how many: reference counts, on the host."""

from collections.abc import Sequence


class Pages:
  """The pages of one device. Page 0 is the dummy and is never given out."""

  def __init__(self, count: int) -> None:
    """Starts with all pages free.

    Args:
      count: of pages, the dummy included.
    """
    self._free = list(range(count - 1, 0, -1))
    self._owners = [0] * count

  @property
  def free(self) -> int:
    """How many can be taken."""
    return len(self._free)

  def owners(self, page: int) -> int:
    """How many share a page."""
    return self._owners[page]

  def take(self, count: int) -> list[int] | None:
    """Takes pages, with one owner each; None if fewer are free."""
    if count > len(self._free):
      return None
    taken = [self._free.pop() for _ in range(count)]
    for page in taken:
      self._owners[page] = 1
    return taken

  def share(self, pages: Sequence[int]) -> None:
    """Adds an owner to each page."""
    for page in pages:
      assert self._owners[page] > 0, f'page {page} is free'
      self._owners[page] += 1

  def release(self, pages: Sequence[int]) -> None:
    """Removes an owner from each page; a page without owners is free again."""
    for page in pages:
      assert self._owners[page] > 0, f'page {page} is free'
      self._owners[page] -= 1
      if not self._owners[page]:
        self._free.append(page)
