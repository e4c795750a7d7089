"""Runs all of configs/small/word_problems.py, one stage after another.

  python benchmarks/small_run.py --model=FOLDER --root=runs/small

Makes the problems, tunes the base policy, trains and examines the judge, trains
the four arms, and compares them on held-out problems. Every stage is a run in a
folder of --root: starting this again goes on where it stopped.
--stages=base,judge runs some of them, --dry_run prints the commands.
"""

import pathlib
import shlex
import subprocess
import sys

from absl import app, flags

_HERE = pathlib.Path(__file__).parent
_CONFIGS = _HERE.parent / 'configs/small'
ARMS = ('process', 'outcome', 'grpo', 'sft')
STAGES = ('base', 'judge', *ARMS, 'compare')

_MODEL = flags.DEFINE_string('model', None, 'SmolLM2-135M-Instruct: a folder '
                             'or name.', required=True)
_ROOT = flags.DEFINE_string('root', 'runs/small', 'Folder of all stages.')
_STAGES = flags.DEFINE_list('stages', list(STAGES), 'Which stages to run.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')


def command(stage: str, model: str, root: pathlib.Path) -> list[str]:
  """The command line of a stage."""
  data = root / 'data'
  recipe = '' if stage in ('process', 'compare') else f':{stage}'
  init = model if stage in ('base', 'judge') else str(root / 'base')
  line = [
      sys.executable, '-m', 'exprl_jax.main',
      f'--config={_CONFIGS}/word_problems.py{recipe}',
      f'--workdir={root / stage}', f'--config.policy.init={init}'
  ]
  if stage in ('judge', 'process', 'outcome', 'compare'):
    line.append(f'--config.judge.template={_CONFIGS}/judge.txt')
  if stage == 'judge':
    return [
        *line, f'--config.judge.init={model}', '--config.judge.traces=',
        f'--config.judge_training.traces={data}/judge.jsonl',
        f'--config.judge_training.held_out={data}/judge_test.jsonl'
    ]
  name = {'base': 'warm_up'}.get(stage, 'train')
  line.append(f'--config.data.train={data}/{name}.jsonl')
  held_out = 'test' if stage == 'compare' else 'validation'
  line.append(f'--config.eval.problems={data}/{held_out}.jsonl')
  if stage in ('process', 'outcome', 'compare'):
    line += [f'--config.judge.init={root}/judge/model',
             f'--config.judge.traces={data}/judge_test.jsonl']  # yapf: disable
  if stage == 'compare':
    line += [
        '--config.run=evaluate', '--config.eval.samples=4',
        '--config.eval.newly_solved_k=4',
        f'--config.eval.models={tuple(str(root / arm) for arm in ARMS)}'
    ]
  return line


def main(_):
  """Runs the stages."""
  root = pathlib.Path(_ROOT.value)
  if unknown := [s for s in _STAGES.value if s not in STAGES]:
    sys.exit(f'error: --stages={",".join(unknown)}: choose from '
             f'{", ".join(STAGES)}')
  lines = [[
      sys.executable,
      str(_HERE / 'word_problems.py'),
      str(root / 'data')
  ]]
  lines += [
      command(s, _MODEL.value, root) for s in STAGES if s in _STAGES.value
  ]
  for line in lines:
    print(shlex.join(line), flush=True)
    if not _DRY_RUN.value:
      subprocess.run(line, check=True)


if __name__ == '__main__':
  app.run(main)
