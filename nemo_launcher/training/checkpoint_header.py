# SPDX-License-Identifier: Apache-2.0
"""The form of a training checkpoint's file as far as it can be read without torch, and the names of such files.

The first line says how long the JSON is that follows, how long the tensors are behind it, and the SHA-256 of both:

    nemo-launcher checkpoint 1 <sha256> <bytes of JSON> <bytes of tensors>
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from nemo_launcher.files.foreign import parse_json

MAGIC = b"nemo-launcher checkpoint 1 "
SUFFIX = ".ckpt"
LAST = "-last"
CALLBACK = "AdapterCheckpoint"
"""The name under which a checkpoint holds which ones are kept."""
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch.save begins a file, today and formerly
_MAX_LINE = 200
_CHUNK = 1 << 20
_FIGURE = r"([A-Za-z_]\w*=)?-?(\d+(\.\d*)?(e[-+]?\d+)?|nan|inf)"


class DamagedCheckpointError(Exception):
    """A checkpoint file that is not what was written."""


class ForeignCheckpointError(Exception):
    """A file that this format never was, such as one of torch.save's."""


def is_foreign(path: Path) -> bool:
    """Return whether a file is a checkpoint that this format never was; one that cannot be read may be any."""
    try:
        first_line(path)
    except ForeignCheckpointError:
        return True
    except (DamagedCheckpointError, OSError):
        pass
    return False


def first_line(path: Path) -> tuple[str, int, int, int]:
    """Return the checksum, where the content begins, and how many bytes of JSON and of tensors there are.

    Raises DamagedCheckpointError, ForeignCheckpointError, or OSError where it cannot be read at all.
    """
    with path.open("rb") as stream:
        begin = stream.read(_MAX_LINE)
        size = stream.seek(0, 2)
    if not begin.startswith(MAGIC):
        if begin.startswith((_ZIP, _PICKLE)):
            raise ForeignCheckpointError("it is one of torch.save's, which only unpickling could read")
        raise DamagedCheckpointError("it does not begin as a checkpoint does")
    line, newline, _ = begin.partition(b"\n")
    fields = line[len(MAGIC) :].split(b" ")
    if not newline or len(fields) != 3 or len(fields[0]) != 64 or not all(field.isdigit() for field in fields[1:]):
        raise DamagedCheckpointError("its first line is damaged")
    start, num_json, num_tensors = len(line) + 1, int(fields[1]), int(fields[2])
    if size != start + num_json + num_tensors:
        raise DamagedCheckpointError(f"it has {size:,} bytes instead of {start + num_json + num_tensors:,}")
    return fields[0].decode("ascii", "replace"), start, num_json, num_tensors


def read_facts(path: Path) -> dict[str, Any]:
    """Return the JSON of a checkpoint that is whole: all of it but the tensors. Raises as first_line, and UserError."""
    sha256, begin, num_json, _ = first_line(path)
    with path.open("rb") as stream:
        stream.seek(begin)
        text = stream.read(num_json)
        digest = hashlib.sha256(text)
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise DamagedCheckpointError("its checksum is wrong")
    value = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise DamagedCheckpointError("it holds no checkpoint")
    return value


def names_of(template: str) -> re.Pattern[str]:
    """Return what matches the names that a template gives; copies that the user has made have others."""
    literals = re.split(r"\{[^{}]*\}", template)
    return re.compile(_FIGURE.join(map(re.escape, literals)) + rf"({LAST})?(-v\d+)?{re.escape(SUFFIX)}")


def is_ours(path: Path) -> bool:
    """Whether a file begins as a checkpoint of this project does."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC
