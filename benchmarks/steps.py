"""How the rules of judge.delimiter cut real traces (docs/method.md).

  pip install --no-deps champ-dataset
  python benchmarks/steps.py --model=MODEL

The 540 traces are GPT-3.5's and GPT-4's on competition problems (CHAMP, arXiv
2401.06961). The tokenizer decides only how long steps are; any that has
lowercase and uppercase letters, digits and line feeds will do.
"""

import importlib.util
import json
import pathlib

from absl import app, flags

from exprl_jax.data import steps
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import references

_MODEL = flags.DEFINE_string('model', None,
                             'Folder or name, for its tokenizer.',
                             required=True)
_MAX_STEPS = flags.DEFINE_integer('max_steps', 16, 'judge.max_steps.')
_RULES = ('auto', 'headings', 'numbered', 'blank_line', 'spans', 'authors')
_COLUMNS = ('steps/one_step_frac', 'steps/natural_mean',
            'steps/largest_token_frac', 'steps/rule_numbered_frac',
            'steps/rule_blank_line_frac', 'steps/rule_spans_frac')


def traces() -> list[str]:
  """The traces of the package champ-dataset, which need not be imported."""
  spec = importlib.util.find_spec('champ_dataset')
  if spec is None or spec.origin is None:
    raise SystemExit('pip install --no-deps champ-dataset')
  path = pathlib.Path(spec.origin).parent / 'dataset_files/v0.json'
  problems = json.loads(path.read_text())['problems'].values()
  return [t['text'] for p in problems for t in p['fws_annotations'].values()]


def main(_: list[str]) -> None:
  """Prints the table."""
  tokenizer = Tokenizer(references.find(_MODEL.value).folder)
  ids = [tokenizer.encode(text) for text in traces()]
  print(f'{len(ids)} traces, {sum(map(len, ids)) / len(ids):.0f} tokens each')
  print('| rule | ' + ' | '.join(c.partition('/')[2] for c in _COLUMNS) + ' |')
  for rule in _RULES:
    segment = steps.Segmenter(tokenizer, rule, _MAX_STEPS.value)
    found = steps.metrics([segment.cut(x) for x in ids])
    print(f'| `{rule}` | ' +
          ' | '.join(f'{found.get(c, 0):.3f}' for c in _COLUMNS) + ' |')


if __name__ == '__main__':
  app.run(main)
