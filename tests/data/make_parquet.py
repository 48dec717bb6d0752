"""choices/questions.jsonl as a Parquet file, with the types of Hugging Face's MMLU, in two row groups.

    pip install pyarrow==26.0.1
    python tests/data/make_parquet.py
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

folder = Path(__file__).parent / "choices"
rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
schema = pa.schema(
    [
        ("question", pa.string()),
        ("subject", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.int64()),
    ]
)
table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
pq.write_table(table, folder / "questions.parquet", row_group_size=(len(rows) + 1) // 2, compression="snappy")
