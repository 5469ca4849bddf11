"""Files made to do harm: each holds a payload that would leave a marker file if it ran."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mla_lm.checkpoint import file as checkpoint_file
from mla_lm.checkpoint.record import RECORD

Forgery = Callable[[Path, Path], None]  # (a good checkpoint, where to write)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def marker(path: Path) -> Path:
    return path.with_name("marker")


def pickled(protocol: int) -> Forgery:
    return lambda good, path: (
        path.write_bytes(pickle.dumps(Payload(marker(path)), protocol)) and None
    )


def torch_saved(zipped: bool) -> Forgery:
    def forge(good: Path, path: Path) -> None:
        payload = {"state_dict": Payload(marker(path))}
        torch.save(payload, path, _use_new_zipfile_serialization=zipped)

    return forge


def zip_of_pickle(good: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker(path))))


def tar_of_checkpoint(good: Path, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(good, "../../step-000012.ckpt")


def gzipped(good: Path, path: Path) -> None:
    path.write_bytes(gzip.compress(good.read_bytes()))


def numpy_objects(good: Path, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload(marker(path))]), allow_pickle=True)


def pickle_behind(good: Path, path: Path) -> None:
    path.write_bytes(good.read_bytes() + pickle.dumps(Payload(marker(path))))


def pickle_inside(good: Path, path: Path) -> None:
    """A tensor of pickled bytes in the place of the tokenizer, with a good digest."""
    stream = io.BytesIO()
    torch.save(Payload(marker(path)), stream)
    content = checkpoint_file.read(good)
    payload = np.frombuffer(stream.getvalue(), dtype=np.uint8).copy()
    content[RECORD]["tokenizer"] = torch.from_numpy(payload)
    checkpoint_file.write(path, content)


def edited(edit: Callable[[dict[str, Any], str], None]) -> Forgery:
    """The content changed, with a good digest."""

    def forge(good: Path, path: Path) -> None:
        content = checkpoint_file.read(good)
        edit(content, f"touch {marker(path)}")
        checkpoint_file.write(path, content)

    return forge


def config(key: str, value: Callable[[str], Any]) -> Forgery:
    """Another value in the stored configuration."""

    def edit(content: dict[str, Any], command: str) -> None:
        node = content[RECORD]["config"]
        *outer, last = key.split(".")
        for part in outer:
            node = node[part]
        node[last] = value(command)

    return edited(edit)


def target_beside(content: dict[str, Any], command: str) -> None:
    content[RECORD]["config"] |= {"_target_": "os.system", "command": command}


def tensor_named_by_path(content: dict[str, Any], command: str) -> None:
    content["state_dict"]["../../../etc/passwd"] = torch.zeros(3)


def tensor_of_another_shape(content: dict[str, Any], command: str) -> None:
    content["state_dict"]["model.norm.weight"] = torch.zeros(10**6)


def raw(change: Callable[[dict[str, Any]], Mapping[str, Any] | bytes]) -> Forgery:
    """Another safetensors header, with a good digest."""

    def forge(good: Path, path: Path) -> None:
        content = good.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = change(json.loads(content[8 : 8 + size]))
        if not isinstance(header, bytes):
            header = json.dumps(header, separators=(",", ":")).encode()
        path.write_bytes(resigned(len(header).to_bytes(8, "little") + header + content[8 + size :]))

    return forge


def resigned(content: bytes) -> bytes:
    at, zeros = checkpoint_file.DIGEST_AT, checkpoint_file.UNKNOWN.encode()
    digest = hashlib.sha256(content[:at] + zeros + content[at + 64 :]).hexdigest()
    return content[:at] + digest.encode() + content[at + 64 :]


def overlapping(header: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    return header


def beyond_the_end(header: dict[str, Any]) -> dict[str, Any]:
    *_, last = header
    header[last]["data_offsets"][1] += 2**40
    return header


def nested_deeply(header: dict[str, Any]) -> dict[str, Any]:
    text = header["__metadata__"]["mla_lm"]
    deep = "[" * 100_000 + "]" * 100_000
    header["__metadata__"]["mla_lm"] = text.replace('"content":{', f'"content":{{"x":{deep},', 1)
    return header


def yaml_for_json(header: dict[str, Any]) -> dict[str, Any]:
    text = header["__metadata__"]["mla_lm"]
    tag = "!!python/object/apply:os.system ['touch marker']"
    header["__metadata__"]["mla_lm"] = text[:77] + f'"format": {tag}}}'
    return header


def huge_header(good: Path, path: Path) -> None:
    content = good.read_bytes()
    path.write_bytes(resigned((2**62).to_bytes(8, "little") + content[8:]))


TAG = "!!python/object/apply:os.system"
FORGERIES: dict[str, Forgery] = {
    "pickle, protocol 0": pickled(0),
    "pickle, protocol 5": pickled(5),
    "torch.save": torch_saved(True),
    "torch.save, legacy": torch_saved(False),
    "zip of a pickle": zip_of_pickle,
    "tar of a checkpoint": tar_of_checkpoint,
    "gzip of a checkpoint": gzipped,
    "numpy objects": numpy_objects,
    "pickle behind the tensors": pickle_behind,
    "pickle for a tokenizer": pickle_inside,
    "_target_ in the configuration": edited(target_beside),
    "_target_ in the model": config("model", lambda c: {"_target_": "os.system", "command": c}),
    "callbacks": config("callbacks", lambda c: {"x": {"_target_": "os.system", "command": c}}),
    "_class_path": config("_class_path", lambda c: "os.system"),
    "auto_map": config("model.auto_map", lambda c: {"AutoModel": "evil.Model"}),
    "YAML tag for a number": config("model.dim", lambda c: f"{TAG} ['{c}']"),
    "path for a run_id": config("run_id", lambda c: "../../marker"),
    "interpolation of a secret": config("init_from", lambda c: "/nowhere/${oc.env:HOME}"),
    "tensor named by a path": edited(tensor_named_by_path),
    "tensor of another shape": edited(tensor_of_another_shape),
    "overlapping offsets": raw(overlapping),
    "offsets beyond the end": raw(beyond_the_end),
    "metadata nested deeply": raw(nested_deeply),
    "metadata in YAML": raw(yaml_for_json),
    "huge header": huge_header,
}
