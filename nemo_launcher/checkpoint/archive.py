# SPDX-License-Identifier: Apache-2.0
"""`.nemo` archives: a tar (plain or gzip) or a folder with `model_config.yaml`, weights and artifacts; NeMo 2 folders.

Imports no torch, so that the launcher can inspect checkpoints. Nothing in an archive is executed and links are not
followed. Members are read in place; nothing is extracted outside the folder that the caller names.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nemo_launcher.checkpoint.model_config import checked_config
from nemo_launcher.checkpoint.nemo2 import is_nemo2, read_context
from nemo_launcher.checkpoint.other_forms import unknown_format_problem
from nemo_launcher.checkpoint.sources import source_problem
from nemo_launcher.checkpoint.streams import Part, is_compressed, unpacking
from nemo_launcher.checkpoint.tar_index import MAX_MEMBERS, Damaged, Member, Reader, Source, check_names
from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, inside
from nemo_launcher.files.foreign_yaml import MAX_YAML_BYTES, parse_yaml
from nemo_launcher.files.temporary import roomy_folder

CONFIG_NAME = "model_config.yaml"
WEIGHTS_NAME = "model_weights.ckpt"
TOKENIZER_FOLDER = "tokenizer"
MAX_FOLDER_BYTES = 1 << 30
"""The maximum size of a folder to extract; a tokenizer's files have at most 64 MB."""


class DamagedArchive(UserError):
    """The file is incomplete, changed or not an archive. An interrupted stage of ours may have left it so."""


class Archive:
    """An open `.nemo` file or extracted folder, or a NeMo 2 checkpoint. Use it as a context manager.

    Raises UserError if the path does not exist, or the archive has links, devices, unsafe names or duplicate names;
    DamagedArchive if it is incomplete or not an archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stream: IO[bytes] | None = None  # the plain or unpacked tar; None for a folder
        self._members: dict[str, Member] = {}
        self._config: bytes | None = None
        self._compressed = False
        self._unpacked_bytes = 0
        with damaged_as_user_error(self.path):
            convertible = source_problem(self.path)
            if convertible is not None:
                raise UserError(convertible)
            if self.path.is_dir():
                self._members = {member.name: member for member in _files_in(self.path)}
            elif self.path.is_file():
                self._read_tar()
            else:
                kind = "is a device or pipe, not a .nemo file" if self.path.exists() else "no such .nemo file or folder"
                raise UserError(Problem(str(self.path), kind, "" if self.path.exists() else "check the path"))
        self.is_nemo2 = CONFIG_NAME not in self._members and self.path.is_dir() and is_nemo2(self.names)
        if CONFIG_NAME not in self._members and not self.is_nemo2:
            self.close()
            raise UserError(unknown_format_problem(self.names, str(self.path), CONFIG_NAME))

    def _read_tar(self) -> None:
        self._compressed = is_compressed(self.path)
        found: list[Member] = []
        if self._compressed:
            with unpacking(self.path) as stream:
                found = list(Reader(stream, str(self.path), stream.limit).members())
                self._unpacked_bytes = stream.read_to_end()
        else:
            self._stream = self.path.open("rb")
            size = os.fstat(self._stream.fileno()).st_size
            found = list(Reader(self._stream, str(self.path), size).members())
        check_names([member.name for member in found], str(self.path))
        self._members = {member.name: member for member in found}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the underlying file; memory mapped from it stays valid."""
        if self._stream is not None:
            self._stream.close()

    @property
    def names(self) -> set[str]:
        """The names of all files in the archive, without a leading `./`."""
        return set(self._members)

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading (seekable)."""
        self._check(name)
        if self.path.is_dir():
            return inside(self.path, name, str(self.path)).open("rb")
        path, offset = self.locate(name)
        return io.BufferedReader(Part(path.open("rb", buffering=0), offset, self.size(name)))

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a member. Raises UserError if it is missing or larger than `limit` bytes."""
        self._check(name)
        if self.size(name) > limit:
            what = f"has {self.size(name):,} bytes; no file of its kind needs more than {limit:,}"
            raise UserError(Problem(f"{self.path}: {name}", what, "copy or convert it again"))
        with self.open(name) as stream:
            return stream.read()

    def _check(self, name: str) -> None:
        if name not in self._members:
            raise UserError(self.absent(name))

    def absent(self, name: str) -> Problem:
        """Return the Problem for a missing member."""
        return Problem(f"{self.path}: {name}", "is absent from the archive", "copy or convert it again")

    def size(self, name: str) -> int:
        """Return the size of a member in bytes."""
        return self._members[name].size

    def locate(self, name: str) -> tuple[Path, int]:
        """Return the file that holds a member uncompressed, and the member's offset in it in bytes.

        A compressed archive is first unpacked into an unnamed temporary file, which ends with the process. Raises
        UserError if the temporary folder has too little space.
        """
        self._check(name)
        if self.path.is_dir():
            return inside(self.path, name, str(self.path)), 0
        if not self._compressed:
            return self.path, self._members[name].offset
        if self._stream is None:
            self._stream = self._unpacked()
        return Path(f"/proc/{os.getpid()}/fd/{self._stream.fileno()}"), self._members[name].offset

    def _unpacked(self) -> IO[bytes]:
        folder = roomy_folder(self._unpacked_bytes)
        free = shutil.disk_usage(folder).free
        if free < self._unpacked_bytes:
            what = f"unpacks to {self._unpacked_bytes:,} bytes, but {folder} has {free:,} free"
            fix = f"unpack it (mkdir FOLDER; tar -xzf {self.path} -C FOLDER) and give the path of the folder"
            raise UserError(Problem(str(self.path), what, fix))
        copy = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (close does)
        with damaged_as_user_error(self.path), unpacking(self.path) as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        return copy

    def config(self) -> dict[str, object]:
        """Return `model_config.yaml` as plain containers, with the types of all keys that are used checked.

        Of a NeMo 2 checkpoint, return its equivalent.
        """
        if self.is_nemo2:
            return checked_config(read_context(self.read, self.names, str(self.path)), str(self.path))
        if self._config is None:
            self._config = self.read(CONFIG_NAME, MAX_YAML_BYTES)
        return parse_config(self._config, self.path)

    def folder_size(self, folder: str) -> int:
        """Return the size in bytes of all members under `folder/`, or of all small members for an empty name."""
        if not folder:
            return sum(size for name in self.names if (size := self.size(name)) <= MAX_TEXT_BYTES)
        return sum(self.size(name) for name in self.names if name.startswith(f"{folder}/"))

    def extract_folder(self, folder: str, destination: Path) -> bool:
        """Copy the members under `folder/` to `destination`; return whether there were any.

        Raises UserError if they exceed MAX_FOLDER_BYTES: a sparse file could fill the disk.
        """
        if self.folder_size(folder) > MAX_FOLDER_BYTES:
            what = f"has {self.folder_size(folder):,} bytes; no tokenizer needs more than {MAX_FOLDER_BYTES:,}"
            raise UserError(Problem(f"{self.path}: {folder}/", what, "copy or convert it again"))
        names = [name for name in self._members if name.startswith(f"{folder}/")]
        for name in names:
            target = inside(destination, name.removeprefix(f"{folder}/"), f"{self.path}: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.open(name) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        return bool(names)


@contextlib.contextmanager
def damaged_as_user_error(path: Path) -> Iterator[None]:
    """Turn errors on a damaged file into DamagedArchive."""
    try:
        yield
    except UserError:
        raise
    except (Damaged, zlib.error, EOFError, OSError, ValueError, ArithmeticError) as error:
        unreadable = isinstance(error, OSError) and error.errno != errno.EIO and environment_message(error) is not None
        if unreadable:
            raise
        what = f"is truncated or not a .nemo archive ({error})"
        raise DamagedArchive(Problem(str(path), what, "copy or convert it again")) from error


def _files_in(folder: Path) -> Iterator[Member]:
    """Yield the files of an extracted archive. Raises UserError for links and other special files."""
    waiting, count = [""], 0
    while waiting:
        above = waiting.pop()
        with os.scandir(inside(folder, above, str(folder)) if above else folder) as entries:
            for entry in entries:
                name = f"{above}/{entry.name}" if above else entry.name
                count += 1
                if count > MAX_MEMBERS:
                    what = f"holds more than {MAX_MEMBERS:,} files: it is not an extracted .nemo"
                    raise UserError(Problem(str(folder), what, "give the path of the folder with model_config.yaml"))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.is_file(follow_symlinks=False):
                    yield Member(name, entry.stat().st_size, 0)
                else:
                    kind = "a link" if entry.is_symlink() else "not a regular file"
                    what, fix = f"is {kind}, which is not followed", "replace it by a copy of the file"
                    raise UserError(Problem(f"{folder}: {name}", what, fix))


def parse_config(text: bytes, source: Path) -> dict[str, object]:
    """Return the `model_config.yaml` of the archive `source` as plain containers.

    Raises UserError if it is not valid YAML within the limits, not a mapping, or has a key of the wrong type.
    """
    value = parse_yaml(text, f"{source}: {CONFIG_NAME}")
    if not isinstance(value, dict):
        raise UserError(Problem(f"{source}: {CONFIG_NAME}", "is not a mapping", "copy or convert it again"))
    return checked_config({str(key): item for key, item in value.items()}, str(source))


def read_leading_config(path: Path) -> dict[str, object] | None:
    """Return the configuration at the start of a `.nemo` file, even if the rest of the file is missing.

    None if the file does not exist, is not an archive, or starts with another member. Archives of `write_archive` start
    with their configuration.
    """
    found: list[bytes] = []
    if not path.is_file():  # opening a pipe would block
        return None
    with contextlib.suppress(UserError, Damaged, OSError, EOFError, ValueError, zlib.error):
        opened: contextlib.AbstractContextManager[Source]
        opened = unpacking(path) if is_compressed(path) else path.open("rb")
        with opened as content:
            reader = Reader(content, str(path), 1 << 62)
            first = next(reader.members())
            if first.name == CONFIG_NAME:
                found.append(reader.take(min(first.size, MAX_YAML_BYTES)))
        return parse_config(found[0], path) if found else None
    return None


def read_config(path: str | Path) -> dict[str, object]:
    """Return the `model_config.yaml` of an archive."""
    with Archive(path) as archive:
        return archive.config()
