"""What the command does, as functions for scripts and notebooks.

  import exprl_jax as ex

has them all; docs/python.md is a tour.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

from etils import epath
import jax
from jaxtyping import Bool, Float
import ml_collections
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.config import Config, files
from exprl_jax.data import steps as steps_lib
from exprl_jax.data import validation
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_traces
from exprl_jax.judge import factory
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.models.config import ModelConfig
from exprl_jax.report import Result
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.runs import dry_run as dry_run_lib
from exprl_jax.runs import recipes
from exprl_jax.runs import sample as sample_lib
from exprl_jax.runtime import inputs
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import FinishReason, InputError, Params, Problem

# A text as it is, a chat, or token ids.
Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A loaded model.

  Attributes:
    folder: has config.json and the tokenizer.
    tokenizer: with the chat template.
    config: the shape of the decoder.
    params: its parameters, matrices in config.dtype.
    mesh: that they are on.
  """

  folder: epath.Path
  tokenizer: Tokenizer
  config: ModelConfig
  params: Params
  mesh: jax.sharding.Mesh


class Completion(NamedTuple):
  """A sample."""

  text: str
  tokens: list[int]  # the end token included
  logprobs: Float[np.ndarray, ' T']  # of the distribution that was sampled from
  finish_reason: FinishReason


class TraceScores(NamedTuple):
  """What a judge says of a trace, by step."""

  steps: list[str]
  scores: Float[np.ndarray, ' S']  # in [0, 1]; 0 where not valid
  valid: Bool[np.ndarray, ' S']  # False: the judge gave no readable score
  score_token_probability: Float[np.ndarray, ' S']  # of 1 to 5; nan: not read
  rationales: list[str]  # '' of a readout that generates none


def load_config(path: str | os.PathLike, **overrides: Any) -> Config:
  """Loads FILE.py or FILE.py:RECIPE, as --config does.

  Args:
    path: of the config file.
    **overrides: keys, as flags would set them; for a group of keys, a dict:
      `steps=3, optim={'lr': 1e-4}`.

  Raises:
    InputError: a file, key, value or combination of values that cannot be.
  """
  values = config_lib.load(str(path))
  config = recipes.freeze(
      config_lib.overlay(values, overrides, f'load_config({str(path)!r})'))
  if not config.compare:
    return config
  # The config forgets its file, beside which the other one is.
  beside = files.beside(str(path), config.compare)
  return dataclasses.replace(config, compare=beside)


def run(config: Config, workdir: str | os.PathLike = '') -> Result | None:
  """Runs a config as the command does, with the one that it is compared with.

  Args:
    config: of any run mode.
    workdir: where to write; one of the same run is resumed. By default a fresh
      temporary folder; it is printed.

  Returns:
    The config, the workdir and the rows of metrics.jsonl; None for run modes
    without a workdir ('sample', 'rubrics', 'export').

  Raises:
    InputError: something in the config, or in what it names, is not as it
      should be.
  """
  results = main.run(_checked(config), config.run, os.fspath(workdir))
  return results[0] if results else None


def dry_run(config: Config) -> None:
  """Checks config, data and models, and prints a prompt of each kind.

  Raises:
    InputError: as `run` would at its start.
  """
  dry_run_lib.dry_run(_checked(config))


def _checked(config: Config) -> Config:
  """Checks a config, which dataclasses.replace may have changed."""
  return recipes.freeze(ml_collections.ConfigDict(dataclasses.asdict(config)))


def load_model(source: str | os.PathLike, dtype: str = 'float32',
               mesh: jax.sharding.Mesh | None = None) -> Model:
  """Loads a model for `sample` and `score`.

  Args:
    source: a Hugging Face folder, a workdir, WORKDIR@STEP or asset:NAME.
    dtype: of the matrices and their products: 'float32' or 'bfloat16'.
    mesh: by default every device holds a copy.

  Raises:
    InputError: no such model, or it is not as it should be; names it.
  """
  _config(policy={'dtype': dtype})
  mesh = mesh or mesh_lib.make_mesh(config_lib.Mesh(data=-1, fsdp=1))
  origin = references.find_to_sample(os.fspath(source))
  model_config.read_config(origin.folder)
  tokenizer = Tokenizer(origin.folder)
  folder, config, params = references.load(origin, mesh, dtype, frozen=True)
  return Model(folder, tokenizer, config, params, mesh)


def sample(model: Model, prompts: Sequence[Prompt], n: int = 1,
           max_new_tokens: int = 256, temperature: float = 1.0, seed: int = 0,
           **rollout: Any) -> list[list[Completion]]:
  """Completes prompts.

  Args:
    model: a loaded model.
    prompts: texts, which are used as they are; chats, lists of {'role':
      ..., 'content': ...}, which the model's template renders; or token ids.
    n: completions of each prompt.
    max_new_tokens: of a completion, the end token included.
    temperature: 0 takes the most probable token.
    seed: the same seed gives the same completions.
    **rollout: other keys of config.rollout: top_k, top_p, min_p, stop, slots.

  Returns:
    The n completions of every prompt.

  Raises:
    InputError: a prompt or a value is not as it should be.
  """
  ids = list(_encode_prompts(model.tokenizer, prompts))
  if not ids:
    return []
  # A multiple, so that prompts of other lengths need no other programs.
  width = -(-max(1, *map(len, ids)) // 128) * 128
  config = _config(
      rollout={
          'group_size': n, 'max_prompt_tokens': width,
          'max_new_tokens': max_new_tokens, 'temperature': float(
              temperature), 'slots': min(64, n * len(ids))
      } | rollout)
  sampler = Sampler(config, model.config, model.tokenizer, model.mesh)
  groups = sampler.generate(model.params, ids, n, jax.random.key(seed))
  return [[
      Completion(model.tokenizer.decode(s.tokens), s.tokens.tolist(),
                 s.logprobs, s.finish_reason) for s in group
  ] for group in groups]


def _encode_prompts(tokenizer: Tokenizer,
                    prompts: Sequence[Prompt]) -> Iterator[list[int]]:
  if isinstance(prompts, str):
    raise InputError('sample: prompts should be a list, it is one text')
  for i, prompt in enumerate(prompts):
    if isinstance(prompt, str):
      kind = 'prompt'
    elif isinstance(prompt, Sequence) and prompt and isinstance(
        prompt[0], Mapping):
      kind = 'messages'
    else:
      kind, prompt = 'tokens', np.asarray(prompt).tolist()
    yield sample_lib.encode(kind, prompt, tokenizer, f'sample: prompt {i}')


def score(judge: Model | str | os.PathLike,
          problems: Sequence[Problem | Mapping[str, Any]],
          traces: Sequence[Sequence[str]], readout: str = 'direct',
          reward: str = 'process', **keys: Any) -> list[list[TraceScores]]:
  """Lets a judge score traces.

  Args:
    judge: a loaded model, or the folder of one.
    problems: P problems, or rows as in a problem file: `question`, `solution`
      and, by config.judge.reference, `rubric`.
    traces: some texts for each problem.
    readout: how scores are read: config.judge.readout.
    reward: 'process' scores the trace up to each step, 'outcome' the trace.
    **keys: other keys of config.judge: template, delimiter, scale and so on.

  Returns:
    The scores of every trace of every problem.

  Raises:
    InputError: a problem, the judge or a value is not as it should be.
  """
  # 1. All that can fail on input.
  model = judge if isinstance(judge, Model) else None
  source = str(model.folder if model else judge)
  if model:
    keys['dtype'] = model.config.dtype
  config = _config(run='judge', reward=reward, mesh={'data': -1, 'fsdp': 1},
                   judge=keys | {'init': source, 'readout': readout})
  recipes.check_judge(config)
  items = [_problem(row, i) for i, row in enumerate(problems)]
  factory.check(config, items)
  found = _split(config, items, traces)
  # 2. Scores, trace by trace.
  rows = iter(_judge(config, model, found) if found else [])
  return [[next(rows) for _ in texts] for texts in traces]


def _problem(row: Problem | Mapping[str, Any], i: int) -> Problem:
  if isinstance(row, Problem):
    return row
  return validation.check_row(dict(row), f'score: problem {i}', i,
                              ('solution',))


def _split(config: Config, problems: Sequence[Problem],
           traces: Sequence[Sequence[str]]) -> list[judge_traces.Trace]:
  """Splits the traces of all problems into steps."""
  if len(problems) != len(traces) or any(isinstance(x, str) for x in traces):
    raise InputError(f'score: {len(problems)} problems need as many lists of '
                     f'traces; there are {len(traces)}')
  for problem, texts in zip(problems, traces):
    for text in texts:
      inputs.encodable(text, f'score: a trace of problem {problem.id!r}')
  segment = steps_lib.segmenter(config.judge, _judge_tokenizer(config),
                                config.reward == 'process')
  return [
      judge_traces.Trace(f'{problem.id}/{i}', problem, segment.split(text),
                         None)
      for problem, texts in zip(problems, traces)
      for i, text in enumerate(texts)
  ]


def _judge(config: Config, model: Model | None,
           traces: Sequence[judge_traces.Trace]) -> list[TraceScores]:
  """Scores traces by a loaded model, or by that of the config."""
  tokenizer = _judge_tokenizer(config)
  longest = max(
      sum(len(tokenizer.encode(step)) for step in t.steps) for t in traces)
  judge = factory.load(
      config, model.mesh if model else mesh_lib.make_mesh(config.mesh),
      shared=(model.folder, model.config, model.params) if model else None,
      max_trace_tokens=longest)
  found = judge_traces.score(judge, traces)
  return [
      TraceScores(t.steps, found.score[i, :n], found.readable[i, :n],
                  found.score_token_probability[i, :n], found.texts[i][:n])
      for i, t in enumerate(traces)
      for n in [len(t.steps)]
  ]


def _judge_tokenizer(config: Config) -> Tokenizer:
  return factory.tokenizer_of(config)


def _config(**keys: Any) -> Config:
  """The defaults with some keys, all checked one by one."""
  values = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  config = config_lib.freeze(config_lib.overlay(values, keys, 'a keyword'))
  return config
