"""Writes the assets that ship with the package, except trained weights.

    python -m exprl_jax.tiny.assets

These are the problem sets, labeled traces to examine a judge with, and for the
tiny policy and judge the tokenizer, the chat template and config.json. The
weights are trained with configs/tiny.py:policy and configs/tiny.py:judge.
"""

from collections.abc import Iterator
import json
import pathlib
import random
from typing import Any

import tokenizers

from exprl_jax.data import tiny_world as world
from exprl_jax.tiny import traces

ASSETS = pathlib.Path(__file__).parent.parent / 'assets'

# Words of the judge's template (judge/templates/tiny.txt) and of chats.
_WORDS = ('user', 'assistant', 'system', 'rate', 'from', 'to', 'much', 'of',
          'the', 'reaches', 'problem', 'reference', 'trace', 'score')
_CHAT = ('{% for message in messages %}<|im_start|> {{ message.role }} '
         '{{ message.content }} <|im_end|> {% endfor %}'
         '{% if add_generation_prompt %}<|im_start|> assistant {% endif %}')


def tokenizer() -> tokenizers.Tokenizer:
  """Makes a tokenizer with one token per word.

  Special tokens are not among the words: text that spells them out stays text.
  """
  words = ['<unk>', *world.WORDS, *(w for w in _WORDS if w not in world.WORDS)]
  out = tokenizers.Tokenizer(
      tokenizers.models.WordLevel({word: i for i, word in enumerate(words)},
                                  unk_token='<unk>'))
  out.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  out.add_special_tokens(['<pad>', '<|im_start|>', '<|im_end|>'])
  return out


def write_model_folder(folder: pathlib.Path, layers: int, width: int,
                       heads: int, kv_heads: int) -> None:
  """Writes config.json, tokenizer and chat template of a small Qwen3.

  Args:
    folder: where to.
    layers: L.
    width: D.
    heads: N.
    kv_heads: K.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tok = tokenizer()
  tok.save(str(folder / 'tokenizer.json'))
  (folder / 'config.json').write_text(
      json.dumps(
          {
              'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3',
              'vocab_size': -(-tok.get_vocab_size() // 8) *
              8, 'num_hidden_layers': layers, 'hidden_size': width,
              'intermediate_size': 256, 'num_attention_heads': heads,
              'num_key_value_heads': kv_heads, 'head_dim': 32,
              'rope_theta': 1e4, 'rms_norm_eps': 1e-6,
              'tie_word_embeddings': True, 'hidden_act': 'silu',
              'attention_bias': False, 'max_position_embeddings': 32768,
              'torch_dtype': 'float32'
          }, indent=2) + '\n')
  (folder / 'tokenizer_config.json').write_text(
      json.dumps(
          {
              'tokenizer_class': 'PreTrainedTokenizerFast',
              'eos_token': '<|im_end|>', 'pad_token': '<pad>',
              'unk_token': '<unk>'
          }, indent=2) + '\n')
  (folder / 'chat_template.jinja').write_text(_CHAT)


def labeled_traces(count: int = 32) -> Iterator[dict[str, Any]]:
  """Yields lines for judge.traces: of each problem a right trace, one of the
  base policy's kind, and one with a wrong box behind right steps."""
  rng = random.Random('labeled traces')
  for i, story in enumerate(world.stories('judge_accept')[:count]):
    problem = story.problem(f'{i}')
    wrong_box = traces.wrong_box(rng, story)
    for kind, text in (('right', story.worked()), ('misread',
                                                   story.worked(rng, 0.2)),
                       ('wrong_box', wrong_box)):
      pieces = world.segments_of(text)
      labels = world.progress(problem.solution, pieces)
      rises = [b > a for a, b in zip([0.0, *labels], labels)]
      wrong = rises.index(False) if not all(rises) else -1
      yield {
          'id': f'{i}-{kind}', 'question': problem.question,
          'solution': problem.solution, 'trace': text,
          'correct': pieces[-1] == world.box(int(problem.answer)),
          'wrong_at': wrong
          if wrong < 0 else len(' ### '.join([*pieces[:wrong], '']))
      }


if __name__ == '__main__':
  world.write_problems(ASSETS / 'tiny_problems')
  (ASSETS / 'tiny_problems/traces.jsonl').write_text(''.join(
      json.dumps(row) + '\n' for row in labeled_traces()))
  write_model_folder(ASSETS / 'tiny_policy', 3, 80, 2, 1)
  write_model_folder(ASSETS / 'tiny_judge', 4, 80, 2, 1)
  print(f'wrote {ASSETS}')
