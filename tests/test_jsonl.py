"""Files of JSON lines that are gone on with."""

import pytest

from exprl_jax.runtime import jsonl


@pytest.mark.parametrize(
    'text, rows, kept',
    [
        ('', [], ''),
        ('{"a": 1}\n', [1], '{"a": 1}\n'),
        ('{"a": 1}\n{"a": 2}', [1, 2], '{"a": 1}\n{"a": 2}\n'),  # no line feed
        ('{"a": 1}\n{"a": 2, "b', [1], '{"a": 1}\n'),  # cut short
        ('{"a": 1}\n{"a": -1}\n', [1], '{"a": 1}\n'),  # not wanted
        ('{"a": 1, "t": "x\u2028y"}\n', [1], '{"a": 1, "t": "x\u2028y"}\n'),
    ])
def test_what_is_there_stays(tmp_path, text, rows, kept):
  path = tmp_path / 'rows.jsonl'
  path.write_text(text, encoding='utf-8')
  found = jsonl.resume(path, lambda row: row['a'] > 0)
  assert [row['a'] for row in found] == rows
  assert path.read_text(encoding='utf-8') == kept
  with jsonl.Writer(path) as write:
    write({'a': 9})
  assert path.read_text(encoding='utf-8') == kept + '{"a": 9}\n'


@pytest.mark.parametrize('text', ['hello\n', 'hello', '[1]\n', '5'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
  path = tmp_path / 'rows.txt'
  path.write_text(text)
  with pytest.raises(ValueError):
    jsonl.resume(path)
  assert path.read_text() == text
