"""Problem files of every format."""

import codecs
import csv
import gzip
import io
import json

from array_record.python import array_record_module
import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from exprl_jax import config as config_lib
from exprl_jax.data import fields

ROW = {'id': 'a', 'question': 'q ?', 'solution': 's', 'answer': '1'}


def write(tmp_path, *rows):
  path = tmp_path / 'p.jsonl'
  path.write_text(''.join(
      (r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rows))
  return path


def jsonl(rows):
  return ''.join(json.dumps(r) + '\n' for r in rows).encode()


def csv_text(rows):
  file = io.StringIO()
  writer = csv.DictWriter(file, rows[0])
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue().encode()


def write_parquet(path, rows):
  pq.write_table(pa.Table.from_pylist(rows), path,
                 row_group_size=2 + len(rows) // 10)


def write_arrow_file(path, rows):
  table = pa.Table.from_pylist(rows)
  with pa.ipc.new_file(path, table.schema) as writer:
    writer.write_table(table, max_chunksize=2)


def write_array_record(path, rows):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for row in rows:
    writer.write(json.dumps(row).encode())
  writer.close()


WRITE = {
    'p.jsonl': lambda path, rows: path.write_bytes(jsonl(rows)),
    'bom.jsonl': lambda path, rows: path.write_bytes(codecs.BOM_UTF8 + jsonl(
        rows)),
    'p.ndjson': lambda path, rows: path.write_bytes(jsonl(rows)),
    'p.jsonl.gz': lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows))
                                                     ),
    # Two frames, as appending makes them.
    'p.jsonl.zst': lambda path, rows: path.write_bytes(b''.join(
        pa.compress(jsonl(part), 'zstd', asbytes=True)
        for part in (rows[:2], rows[2:]))),
    'p.json': lambda path, rows: path.write_text(
        json.dumps(rows, indent=2, ensure_ascii=False), encoding='utf-8-sig'),
    'lines.json': lambda path, rows: path.write_bytes(jsonl(rows)),
    'p.csv': lambda path, rows: path.write_bytes(csv_text(rows)),
    'bom.csv': lambda path, rows: path.write_bytes(codecs.BOM_UTF8 + csv_text(
        rows)),
    'P.CSV.gz': lambda path, rows: path.write_bytes(
        gzip.compress(csv_text(rows))),
    'p.parquet': write_parquet,
    'p.arrow': write_arrow_file,
    'saved': lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(
        path, num_shards=2),
    'p.array_record': write_array_record,
}


def fields_of(**keys):
  return fields.of(config_lib.Data(**keys))
