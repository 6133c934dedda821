# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: one file with JSON, safetensors and a checksum over both.

Nothing is unpickled. The checksum in the first line (training.checkpoint_header) is verified before any content is
used. A value that JSON cannot represent is an object with one key: a tensor `{"$tensor": name}`, a tuple `{"$tuple":
[...]}`, a dictionary with keys other than text `{"$items": [[key, value]]}`, an infinite or NaN number `{"$float":
"inf"}`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import Container, OmegaConf
from safetensors.torch import load, save

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.foreign import parse_json, reading
from nemo_launcher.training.checkpoint_header import MAGIC, DamagedCheckpointError, ForeignCheckpointError, first_line


def write_checkpoint(path: str | Path, content: Mapping[str, object]) -> None:
    """Write a checkpoint atomically. Raises WriteError if the disk is full or unwritable."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encoded(content, tensors, ""), allow_nan=False, separators=(",", ":")).encode()
    packed = save(tensors)
    digest = hashlib.sha256(text)
    digest.update(packed)
    line = MAGIC + f"{digest.hexdigest()} {len(text)} {len(packed)}\n".encode()
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        for part in (line, text, packed):
            stream.write(part)


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Return a checkpoint's content, with tensors on the CPU, after its checksum was verified.

    Raises DamagedCheckpointError or ForeignCheckpointError, and OSError if the file cannot be read.
    """
    path = Path(path)
    sha256, begin, num_json, num_tensors = first_line(path)
    with path.open("rb") as stream:
        stream.seek(begin)
        text, packed = stream.read(num_json), stream.read(num_tensors)
    digest = hashlib.sha256(text)
    digest.update(packed)
    if digest.hexdigest() != sha256:
        raise DamagedCheckpointError("its checksum is wrong")
    # The checksum detects damage, but anyone can write a valid one: the content is read as untrusted input.
    with reading(path):
        tensors = load(packed)
    value = _decoded(parse_json(text, str(path)), tensors)
    if not isinstance(value, dict):
        raise DamagedCheckpointError("its content is not a checkpoint")
    return value


def _encoded(value: object, tensors: dict[str, torch.Tensor], name: str) -> object:
    """Return the JSON form of a value and put its tensors into `tensors`. Raises TypeError for unsupported types."""
    if isinstance(value, torch.Tensor):
        unique = f"{len(tensors)}{name}"
        tensors[unique] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": unique}
    if value is None or isinstance(value, bool | int):
        return value if value is None or isinstance(value, bool) else int(value)
    if isinstance(value, str):  # or a string enumeration
        return str(value.value) if hasattr(value, "value") else str(value)
    if isinstance(value, float | np.floating):
        value = float(value)
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Container):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encoded(item, tensors, f"{name}/{key}") for key, item in value.items()}
        pairs = enumerate(value.items())
        return {"$items": [[_encoded(k, {}, ""), _encoded(v, tensors, f"{name}/{i}")] for i, (k, v) in pairs]}
    if isinstance(value, list | tuple):
        items = [_encoded(item, tensors, f"{name}/{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint cannot hold {name}: a {type(value).__name__}")


def _decoded(value: object, tensors: Mapping[str, torch.Tensor]) -> object:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        match value:
            case {"$tensor": name}:
                return tensors[name]
            case {"$float": text}:
                return float(text)
            case {"$tuple": items}:
                return tuple(_decoded(item, tensors) for item in items)
            case {"$items": pairs}:
                return {_decoded(key, tensors): _decoded(item, tensors) for key, item in pairs}
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"a value in it is malformed: {error}") from error
    return {key: _decoded(item, tensors) for key, item in value.items()}


def unreadable(path: str | Path, error: Exception) -> UserError:
    """Return the UserError for a checkpoint that the user named and that cannot be used."""
    if isinstance(error, ForeignCheckpointError):
        what = f"cannot be resumed: {error}"
        fix = "train in another folder; to start from this adapter: model.restore_path=<the adapter .nemo>"
    else:
        what, fix = f"is damaged: {error}", "use another checkpoint, or copy this one again"
    return UserError(Problem(str(path), what, fix))
