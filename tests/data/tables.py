"""Parquet files to read documents from."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def table(path: Path, texts: Any, *, column: str = "text", rows: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": list(range(len(texts))), column: texts}
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path
