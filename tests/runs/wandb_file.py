"""What an offline file of wandb holds: a log of LevelDB's format with a protobuf in each record."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7  # bytes
FULL, LAST = 1, 4  # kinds of pieces that end a record


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics, in order."""
    return [_values(record.history.item) for record in _parsed(path, "history")]


def wandb_config(path: Path) -> dict[str, Any]:
    """The configuration, by the keys of its first level."""
    updates = [record.config.update for record in _parsed(path, "config")]
    updates += [record.run.config.update for record in _parsed(path, "run")]
    return {key: value for update in updates for key, value in _values(update).items()}


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        key, *inner = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if inner:
            found.setdefault(key, {})[".".join(inner)] = value
        else:
            found[key] = value
    return found


def _parsed(path: Path, kind: str) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            yield record


def _records(content: bytes) -> Iterator[bytes]:
    assert content.startswith(b":W&B")
    at, record = FILE_HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # no room for a header: the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        record += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield record
            record = b""
