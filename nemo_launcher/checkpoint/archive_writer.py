# SPDX-License-Identifier: Apache-2.0
"""Writing `.nemo` archives: a plain tar that starts with `model_config.yaml`. Imports no torch."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nemo_launcher.checkpoint.archive import CONFIG_NAME
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.foreign_yaml import dump_yaml

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Writer = Callable[[IO[bytes]], None]


def write_archive(
    path: str | Path,
    config: Mapping[str, object],
    members: Mapping[str, Writer | bytes],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a plain tar with `config` and the members (bytes, or functions that write them) atomically.

    check: receives the complete temporary file; if it raises, no file is written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        _write_tar(temporary, path, config, members)
        if check is not None:
            check(temporary)


def _write_tar(
    temporary: Path, path: Path, config: Mapping[str, object], members: Mapping[str, Writer | bytes]
) -> None:
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        text = dump_yaml(dict(config))
        _add(tar, CONFIG_NAME, io.BytesIO(text.encode()), len(text.encode()))
        for name, content in members.items():
            if isinstance(content, bytes):
                _add(tar, name, io.BytesIO(content), len(content))
                continue
            # A temporary file on the same file system, as weights may not fit into memory.
            with tempfile.TemporaryFile(dir=path.parent) as stream:
                _run_writer(content, stream)
                size = stream.tell()
                stream.seek(0)
                _add(tar, name, stream, size)


class _ErrorKeeper(io.RawIOBase):
    """Forwards writes and keeps the OSError that torch.save replaces by a RuntimeError."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def write(self, data: ReadableBuffer) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise


def _run_writer(writer: Writer, stream: IO[bytes]) -> None:
    keeper = _ErrorKeeper(stream)
    try:
        writer(keeper)  # type: ignore[arg-type]
    except RuntimeError as error:
        if keeper.error is not None:
            raise keeper.error from error
        raise


def _add(tar: tarfile.TarFile, name: str, stream: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(f"./{name}")
    info.size, info.mode = size, 0o644
    tar.addfile(info, stream)
