"""What a call of the engine did: counts, seconds, metrics."""

import dataclasses


@dataclasses.dataclass
class Stats:
  """Counts of one call of `Engine.generate`.

  Attributes:
    seconds: of the call.
    decode_seconds: with a chunk in flight.
    steps: tokens that the longest row of each chunk decoded, summed.
    slot_steps: the same times the slots.
    row_steps: tokens that were decoded.
    tokens: tokens that were kept: not of rows that were preempted.
    prefilled: tokens that prefill passes computed.
    preemptions: rows that lost their pages and started again.
    context: lengths of all decoding rows, summed over all steps.
  """

  seconds: float = 0.0
  decode_seconds: float = 0.0
  steps: int = 0
  slot_steps: int = 0
  row_steps: int = 0
  tokens: int = 0
  prefilled: int = 0
  preemptions: int = 0
  context: int = 0

  def metrics(self) -> dict[str, float]:
    """The counts by the names they are logged under."""
    return {
        'perf/tokens_per_s': self.tokens / max(self.seconds, 1e-9),
        'rollout/slot_occupancy': self.row_steps / max(self.slot_steps, 1),
        'rollout/prefill_tokens': float(self.prefilled),
        'rollout/preemptions': float(self.preemptions)
    }

  def decode_roofline(self, weight_bytes: int, token_bytes: int,
                      bandwidth: float) -> float:
    """The share of the memory's bandwidth that decoding has used.

    Every step reads all weights, and the keys and values of all rows:
    (steps * weight bytes + context * token bytes) / (seconds * bandwidth).

    Args:
      weight_bytes: of all copies of the weights.
      token_bytes: of a token's keys and values.
      bandwidth: bytes a second, of all devices together.
    """
    moved = self.steps * weight_bytes + self.context * token_bytes
    return moved / (self.decode_seconds * bandwidth)
