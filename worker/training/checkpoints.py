"""Everything needed to go on bit for bit, in one safetensors file; and the model file at the end. Written to a temporary name and fsynced; whoever receives the event renames it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtrain.contract.errors import DataError


@dataclass(frozen=True)
class Saved:
    """A file that lies on the disk whatever happens next."""

    path: str
    sha256: str


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Saved:
    """Tensors and a JSON description as one safetensors file, fsynced with its folder, which must be there: who has lost a job makes no folder for it."""
    body = serialised(tensors, about)
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Saved(str(path), hashlib.sha256(body).hexdigest())


def serialised(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The safetensors format, written in one fixed order: the package's own writer shuffles the description, so that equal contents differ in bytes."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in sorted(about.items())}}
    parts: list[bytes] = []
    at = 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):  # wide numbers first, which keeps all of them aligned
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        parts.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


_DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}


def load(path: Path, *, digest: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a checkpoint of the job with this digest.

    Raises:
        DataError: the file is torn, or belongs to another job.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"the checkpoint {path} cannot be read: {error}") from error
    if about.get("digest") != digest:
        raise DataError(f"the checkpoint {path} belongs to another spec: its digest is {about.get('digest')}, the job's is {digest}")
    return tensors, about
