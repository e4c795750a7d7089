"""Training questions that an evaluation set holds, too."""

from collections import Counter
from collections.abc import Iterable

from exprl_jax.data.checks import text
from exprl_jax.data.checks.report import Finding
from exprl_jax.types import Problem


class Evaluation:
  """The questions of the evaluation sets, as hashes.

  Training data stream by; memory grows with the evaluation sets only.
  """

  def __init__(self, rows: Iterable[tuple[str, Problem]], least: float) -> None:
    """Hashes the questions.

    Args:
      rows: FILE:LINE and problem.
      least: share of 13-grams from which a question counts as overlapping.
    """
    self._least = least
    self._exact: dict[int, str] = {}  # key -> where
    self._grams: dict[int, list[int]] = {}  # 13-gram -> numbers of questions
    self._places: list[str] = []  # where, by number
    self._sizes: list[int] = []  # distinct 13-grams, by number
    for number, (where, p) in enumerate(rows):
      words = text.tokens(p.question)
      grams = text.n_grams(words)
      self._exact.setdefault(text.key(words, p.question), where)
      self._places.append(where)
      self._sizes.append(len(grams))
      for gram in grams:
        self._grams.setdefault(gram, []).append(number)

  def check(self, where: str, words: list[str], key: int) -> list[Finding]:
    """Compares a training question with all of them.

    Its overlap with another is the number of 13-grams in common, relative to
    the shorter of the two.

    Args:
      where: FILE:LINE.
      words: its tokens.
      key: their hash.
    """
    if key in self._exact:
      return [
          Finding('in_evaluation', where, 'question',
                  f'it is the question of {self._exact[key]}')
      ]
    grams = text.n_grams(words) if self._grams else set()
    hits = Counter(n for g in grams for n in self._grams.get(g, ()))
    share, number = max(((count / min(len(grams), self._sizes[n]), n)
                         for n, count in hits.items()), default=(0.0, 0))
    if share < self._least or not hits:
      return []
    return [
        Finding(
            'overlaps_evaluation', where, 'question',
            f'{share:.0%} of its {text.N}-grams are those of '
            f'{self._places[number]}')
    ]
