# SPDX-License-Identifier: Apache-2.0
"""The first line of a training checkpoint, read without torch, and the names of checkpoint files.

The first line holds the SHA-256 of the JSON and the tensors that follow it, and their sizes:

    nemo-launcher checkpoint 1 <sha256> <bytes of JSON> <bytes of tensors>
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nemo_launcher.files.foreign import parse_json

MAGIC = b"nemo-launcher checkpoint 1 "
SUFFIX = ".ckpt"
LAST = "-last"
CALLBACK = "AdapterCheckpoint"
"""The key of AdapterCheckpoint's state in a checkpoint."""
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of torch.save's formats, present and former
_MAX_LINE = 200
_CHUNK = 1 << 20
_FIGURE = r"([A-Za-z_]\w*=)?-?(\d+(\.\d*)?(e[-+]?\d+)?|nan|inf)"


class DamagedCheckpointError(Exception):
    """The file is a checkpoint of this project, but it is damaged or incomplete."""


class ForeignCheckpointError(Exception):
    """The file has another format, such as that of torch.save."""


def is_foreign(path: Path) -> bool:
    """Return whether a file has another format than these checkpoints. An unreadable file is not foreign."""
    try:
        first_line(path)
    except ForeignCheckpointError:
        return True
    except (DamagedCheckpointError, OSError):
        pass
    return False


def first_line(path: Path) -> tuple[str, int, int, int]:
    """Return the checksum, the offset of the content, and the numbers of bytes of JSON and of tensors.

    Raises DamagedCheckpointError or ForeignCheckpointError, and OSError if the file cannot be read.
    """
    with path.open("rb") as stream:
        begin = stream.read(_MAX_LINE)
        size = stream.seek(0, 2)
    if not begin.startswith(MAGIC):
        if begin.startswith((_ZIP, _PICKLE)):
            raise ForeignCheckpointError("torch.save wrote it, and only unpickling could read it")
        raise DamagedCheckpointError("its beginning is not that of a checkpoint")
    line, newline, _ = begin.partition(b"\n")
    fields = line[len(MAGIC) :].split(b" ")
    if not newline or len(fields) != 3 or len(fields[0]) != 64 or not all(field.isdigit() for field in fields[1:]):
        raise DamagedCheckpointError("its first line is damaged")
    start, num_json, num_tensors = len(line) + 1, int(fields[1]), int(fields[2])
    if size != start + num_json + num_tensors:
        raise DamagedCheckpointError(f"it has {size:,} bytes instead of {start + num_json + num_tensors:,}")
    return fields[0].decode("ascii", "replace"), start, num_json, num_tensors


def read_facts(path: Path) -> dict[str, object]:
    """Return the JSON part of an undamaged checkpoint. Raises what first_line raises, and UserError."""
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
        raise DamagedCheckpointError("its content is not a checkpoint")
    return value


def names_of(template: str) -> re.Pattern[str]:
    """Return a pattern that matches the file names made from a template, but not names of the user's own copies."""
    literals = re.split(r"\{[^{}]*\}", template)
    return re.compile(_FIGURE.join(map(re.escape, literals)) + rf"({LAST})?(-v\d+)?{re.escape(SUFFIX)}")


def is_ours(path: Path) -> bool:
    """Return whether a file begins like a checkpoint of this project."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC
