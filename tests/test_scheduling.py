"""The seams of the scheduler: what it tells the devices, what it computes."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout import protocol
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.prefill import Copy, Job, Plan, Prefiller
from exprl_jax.rollout.requests import Request, Sample, Sampling
from exprl_jax.rollout.rows import Row, describe
from exprl_jax.rollout.runner import Runner
from exprl_jax.rollout.stats import Stats
from exprl_jax.types import InputError

OPTIONS = Options(slots=4, max_tokens=24, page=4, pages=40, prefill=8)
HOW = Sampling(max_new_tokens=9, temperature=0.5, top_k=3, top_p=0.25,
               min_p=0.125, min_new_tokens=2, eos_ids=(1,), stop_ids=(2, 3),
               read_ids=(7, 5))
PARTIAL = Sample(np.array([30, 31, 32], np.int32), np.zeros(3, np.float32),
                 'unfinished')


def test_the_devices_read_what_the_host_describes():
  new = Row(Request([11, 12, 13], 70, 1, HOW), 2, [9, 8])
  old = Row(Request([11, 12], 71, 1, HOW, partial=[PARTIAL]), 1, [4])
  old.launch(steps=4)
  slots = protocol.read_inputs(describe([new, old], OPTIONS))
  assert slots.active.tolist() == [False, True, True, False]
  assert slots.is_new.tolist() == [False, False, True, False]
  assert slots.id.tolist()[1:3] == [71, 70]
  assert slots.token.tolist()[1:3] == [32, 13]
  assert slots.position.tolist()[1:3] == [4, 2]
  assert slots.budget.tolist()[1:3] == [6, 9]  # three tokens are done
  assert slots.end_from.tolist()[1:3] == [4, 4]  # so it may end at once
  assert slots.ends[2].tolist() == [1, 2, 3, -1, -1, -1, -1, -1]
  assert slots.reads[2].tolist() == [7, 5, -1, -1, -1, -1, -1, -1]
  assert slots.table[1].tolist() == [4, 0, 0, 0, 0, 0, 0, 0]
  assert slots.table[2].tolist() == [9, 8, 0, 0, 0, 0, 0, 0]
  for name in ('temperature', 'top_k', 'top_p', 'min_p'):
    assert getattr(slots.settings, name)[2] == getattr(HOW, name)


def test_the_host_reads_what_the_devices_pack(rng):
  """To the last bit, infinities too."""
  tokens = rng.integers(0, 2**31 - 1, (4, 6)).astype(np.int32)
  logprobs = rng.normal(size=(4, 6)).astype(np.float32)
  read_logprobs = rng.normal(size=(4, 8)).astype(np.float32)
  logprobs[0, 0], read_logprobs[1, 2] = -np.inf, -0.0
  num_tokens, alive = np.array([6, 0, 1, 2], np.int32), np.arange(4) % 2 == 0
  packed = protocol.pack_outputs(
      *map(jnp.asarray, (tokens, logprobs, read_logprobs, num_tokens, alive)))
  outputs = protocol.read_outputs(packed, 6)
  assert outputs.tokens.tobytes() == tokens.tobytes()
  assert outputs.logprobs.tobytes() == logprobs.tobytes()
  assert outputs.read_logprobs.tobytes() == read_logprobs.tobytes()
  assert outputs.num_tokens.tolist() == num_tokens.tolist()
  assert outputs.alive.tolist() == alive.tolist()


class Devices(Runner):
  """Prefills and copies on the host: notes which token is where."""

  def __init__(self, devices, page):
    self.devices, self._page, self.passes = devices, page, 0
    self.cells = {}  # (device, page, offset) -> token

  def prefill(self, tokens, positions, table):
    self.passes += 1
    rows = len(tokens) // self.devices
    for row, column in np.argwhere(positions >= 0):
      index, offset = divmod(int(positions[row, column]), self._page)
      cell = (row // rows, int(table[row, index]), offset)
      assert cell[1] > 0 and cell not in self.cells
      self.cells[cell] = int(tokens[row, column])

  def copy(self, source, target):
    for device, (sources, targets) in enumerate(zip(source, target)):
      for a, b in zip(sources.tolist(), targets.tolist()):
        for offset in range(self._page):
          if (device, a, offset) in self.cells:
            self.cells[device, b, offset] = self.cells[device, a, offset]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), widths=st.sampled_from([(), (2,), (2, 8), (4, 16, 64)]),
       devices=st.sampled_from([1, 2, 4]))
def test_each_token_of_a_plan_is_computed_once_and_in_its_page(
    data, widths, devices):
  options = dataclasses.replace(OPTIONS, slots=8, widths=widths)
  runner, stats, plan = Devices(devices, options.page), Stats(), Plan()
  used = [0] * devices
  for number in range(data.draw(st.integers(0, 8))):
    device = data.draw(st.integers(0, devices - 1))
    length = data.draw(st.integers(0, 24))
    start = data.draw(st.integers(0, length))
    count = options.pages_for(length)
    pages = [used[device] + i + 1 for i in range(count)]
    used[device] += count
    jobs = data.draw(
        st.sampled_from([plan.shared_prefixes, plan.prompts, plan.suffixes]))
    jobs.append(
        Job(device, [100 * number + i for i in range(length)], start, length,
            pages))
  Prefiller(runner, options, stats).run(plan)
  want = {(job.device, job.pages[i // options.page], i % options.page): job.
          tokens[i]
          for job in [*plan.shared_prefixes, *plan.prompts, *plan.suffixes]
          for i in range(job.start, job.stop)}
  assert runner.cells == want
  assert stats.prefilled == len(want)


def test_a_plan_copies_a_page_before_it_is_written_to():
  """A prompt leaves its shared prefix, and a row its prompt, within a page."""
  runner = Devices(1, OPTIONS.page)
  tokens = [*range(20, 33)]
  plan = Plan(shared_prefixes=[Job(0, tokens, 0, 6,
                                   [1, 2])], prefix_copies=[Copy(0, 2, 3)],
              prompts=[Job(0, tokens, 6, 10,
                           [1, 3, 4])], row_copies=[Copy(0, 4, 5)],
              suffixes=[Job(0, tokens, 10, 12, [1, 3, 5])])
  Prefiller(runner, OPTIONS, Stats()).run(plan)
  row = [
      runner.cells[0, page, offset] for page in (1, 3, 5) for offset in range(4)
  ]
  assert row == tokens[:12]
  assert [runner.cells.get((0, 4, offset)) for offset in range(4)
         ] == [28, 29, None, None]  # the prompt's own page stays as it was


def test_jobs_share_passes_where_that_is_cheaper():
  """Eight jobs of two tokens and one of sixty: two passes, no padding to 64."""
  options = dataclasses.replace(OPTIONS, slots=16, max_tokens=64,
                                widths=(2, 64))
  runner, plan = Devices(1, options.page), Plan()
  plan.prompts += [Job(0, [5, 6], 0, 2, [i + 1]) for i in range(8)]
  plan.prompts.append(Job(0, [7] * 60, 0, 60, list(range(20, 35))))
  Prefiller(runner, options, Stats()).run(plan)
  assert runner.passes == 2


def test_options_are_resolved_for_the_mesh(small, one_device):
  model: ModelConfig = small[0]
  got = options_lib.resolve(Options(slots=3, max_tokens=24, page=4), model,
                            one_device)
  assert (got.slots, got.pages, got.kernel.name) == (3, 3 * 7 + 2, 'reference')
  assert got.ahead is False
  with pytest.raises(InputError,
                     match='^judge.pages=7 of 4 tokens: .* needs 8'):
    options_lib.resolve(
        dataclasses.replace(OPTIONS, pages=7, config_section='judge'), model,
        one_device)


@pytest.mark.parametrize('tokens, alive, reason, kept', [
    ([5, 6, 8], True, None, 3),
    ([5, 6, 1], False, 'eos', 3),
    ([5, 6, 2], False, 'stop', 3),
    ([5, 6, 8], False, 'length', 3),
    ([5, 9, 8], True, 'stop', 2),
    ([9, 6, 1], False, 'stop', 1),
])
def test_finish_reasons_by_hand(tokens, alive, reason, kept):
  how = dataclasses.replace(HOW, stop_strings=('9',), read_ids=())
  row = Row(Request([11], 0, 1, how), 0, [])
  row.launch(steps=3)
  outputs = protocol.Outputs(tokens=np.array([tokens]), logprobs=np.zeros(
      (1, 3), np.float32), read_logprobs=np.zeros((1, 8), np.float32),
                             num_tokens=np.array([3]), alive=np.array([alive]))
  count = row.collect(outputs, steps=3)
  text = lambda ids: ''.join(map(str, ids))
  assert row.finish_reason(alive, count, text) == reason
  assert row.tokens == tokens[:kept]
  assert row.budget == how.max_new_tokens - kept


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(1, 9),
    st.lists(st.text('ab c\n', min_size=1, max_size=5), min_size=1, max_size=2))
@settings(max_examples=200, deadline=None)
def test_stop_strings_are_found_wherever_they_lie(tokens, chunk, strings):
  """As if all of the text were searched after each token; some have none."""
  words = ['a', 'b', ' c', '', '\n', 'ab', 'c\n', '']
  text = lambda ids: ''.join(words[i] for i in ids)
  want = next((n for n in range(1,
                                len(tokens) + 1)
               if any(s in text(tokens[:n]) for s in strings)), None)
  how = dataclasses.replace(HOW, max_new_tokens=99, read_ids=(),
                            stop_strings=tuple(strings))
  row, reason = Row(Request([11], 0, 1, how), 0, []), None
  for i in range(0, len(tokens), chunk):
    part = tokens[i:i + chunk]
    reason = reason or _collect(row, part, text)
    if reason:
      break
  assert (reason == 'stop') == (want is not None)
  assert row.tokens == tokens[:want]


def _collect(row, tokens, decode_text):
  """Gives a row the tokens of a chunk; why it has ended, if it has."""
  row.launch(steps=len(tokens))
  outputs = protocol.Outputs(tokens=np.array([tokens]), logprobs=np.zeros(
      (1, len(tokens)), np.float32), read_logprobs=np.zeros(
          (1, 8), np.float32), num_tokens=np.array([len(tokens)]),
                             alive=np.array([True]))
  count = row.collect(outputs, steps=len(tokens))
  return row.finish_reason(True, count, decode_text)


def test_looking_for_stop_strings_takes_time_by_length():
  """Not by its square: 16,000 tokens of a rationale in chunks of 32."""
  decoded = 0

  def text(ids):
    nonlocal decoded
    decoded += len(ids)
    return ' a' * len(ids)

  how = dataclasses.replace(HOW, max_new_tokens=16000, read_ids=(),
                            stop_strings=('\nScore:',))
  row = Row(Request([11], 0, 1, how), 0, [])
  for _ in range(500):
    assert _collect(row, [5] * 32, text) is None
  assert decoded < 5 * 16000
