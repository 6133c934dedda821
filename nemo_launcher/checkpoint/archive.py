"""`.nemo` archives: a tar (plain or gzip) or a folder with `model_config.yaml`, weights and artifacts.

Imports no torch, so that the launcher floor can look into a checkpoint. Nothing in an archive is executed, and members
are read where they lie: nothing is extracted outside the folder that the caller names.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files import atomic_path

CONFIG_NAME = "model_config.yaml"
WEIGHTS_NAME = "model_weights.ckpt"
TOKENIZER_FOLDER = "tokenizer"


class Archive:
    """An open `.nemo` file or extracted folder. Use as a context manager.

    Raises UserError when the path is absent, is not an archive, is cut short or holds unsafe member names.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tar: tarfile.TarFile | None = None
        self._compressed = False
        self._links: set[str] = set()
        self._scratch: list[tempfile.TemporaryDirectory[str]] = []
        if self.path.is_dir():
            self._names = {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file()}
        elif self.path.is_file():
            self._open_tar()
        else:
            raise UserError(Problem(str(self.path), "no such .nemo file or folder"))
        if CONFIG_NAME not in self._names:
            self.close()
            if CONFIG_NAME in self._links:
                raise UserError(self.absent(CONFIG_NAME))
            raise UserError(Problem(str(self.path), f"holds no {CONFIG_NAME}: it is not a NeMo checkpoint"))

    def _open_tar(self) -> None:
        try:
            with self.path.open("rb") as stream:
                self._compressed = stream.read(2) == b"\x1f\x8b"
            self._tar = tarfile.open(self.path, "r:gz" if self._compressed else "r:")  # noqa: SIM115 (close does)
            members = self._tar.getmembers()
            while self._compressed and self._tar.fileobj is not None and self._tar.fileobj.read(1 << 20):
                pass  # the checksum stands at the end
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, ArithmeticError) as error:
            self.close()
            what = f"is cut short or not a .nemo archive ({error})"
            raise UserError(Problem(str(self.path), what, "copy or convert it again")) from error
        self._members = {member.name.removeprefix("./"): member for member in members if member.isfile()}
        self._links = {member.name.removeprefix("./") for member in members if member.issym() or member.islnk()}
        self._names = set(self._members)
        unsafe = sorted(name for name in self._names if name.startswith("/") or ".." in Path(name).parts)
        if unsafe:
            self.close()
            raise UserError(Problem(f"{self.path}: {unsafe[0]}", "a member lies outside the archive; it is refused"))

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the underlying file; what was mapped from it stays valid."""
        if self._tar is not None:
            self._tar.close()
        for folder in self._scratch:
            folder.cleanup()

    @property
    def names(self) -> set[str]:
        """The names of all files inside, without a leading `./`."""
        return self._names

    @property
    def listed(self) -> set[str]:
        """The names of all files and links inside; `open` refuses the links by name."""
        return self._names | self._links

    def open(self, name: str) -> IO[bytes]:
        """Open one member for reading (seekable)."""
        self._check(name)
        if self._tar is None:
            return (self.path / name).open("rb")
        stream = self._tar.extractfile(self._members[name])
        if stream is None:  # extractfile answers None for what is no regular file; _open_tar kept only those
            raise UserError(Problem(f"{self.path}: {name}", "is not a regular file"))
        return stream

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise UserError(self.absent(name))

    def absent(self, name: str) -> Problem:
        """Return what to tell of a member that is not there."""
        what = "is a link, which is not followed" if name in self._links else "is absent from the archive"
        return Problem(f"{self.path}: {name}", what, "copy or convert it again")

    def size(self, name: str) -> int:
        """Return the size of a member in bytes."""
        return self._members[name].size if self._tar is not None else (self.path / name).stat().st_size

    def locate(self, name: str) -> tuple[Path, int]:
        """Return the file in which a member lies uncompressed, and its offset there in bytes.

        A member of a compressed archive is unpacked for that, into a folder that is removed when the archive closes.
        """
        self._check(name)
        if self._tar is None:
            return self.path / name, 0
        if not self._compressed:
            return self.path, self._members[name].offset_data
        self._scratch.append(tempfile.TemporaryDirectory(prefix="nemo-launcher-"))
        target = Path(self._scratch[-1].name) / "member"
        with self.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return target, 0

    def config(self) -> dict[str, Any]:
        """Return `model_config.yaml` as plain containers."""
        with self.open(CONFIG_NAME) as stream:
            return parse_config(stream.read(), self.path)

    def extract_folder(self, folder: str, destination: Path) -> bool:
        """Copy the members under `folder/` into `destination`; return whether there were any."""
        names = [name for name in self._names if name.startswith(f"{folder}/")]
        for name in names:
            target = destination / name.removeprefix(f"{folder}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.open(name) as stream:
                target.write_bytes(stream.read())
        return bool(names)


def parse_config(text: bytes, source: Path) -> dict[str, Any]:
    """Return a `model_config.yaml`, that of the archive `source`, as plain containers. Raises UserError: no YAML."""
    try:
        value = OmegaConf.to_container(OmegaConf.create(text.decode("utf-8", errors="replace")), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(Problem(f"{source}: {CONFIG_NAME}", f"is not valid YAML: {error}")) from error
    if not isinstance(value, dict):
        raise UserError(Problem(f"{source}: {CONFIG_NAME}", "is not a mapping"))
    return {str(key): item for key, item in value.items()}


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the `model_config.yaml` of an archive."""
    with Archive(path) as archive:
        return archive.config()


Writer = Callable[[IO[bytes]], None]


def write_archive(path: str | Path, config: Mapping[str, Any], members: Mapping[str, Writer | bytes]) -> None:
    """Write a plain tar with `config` and the members (bytes, or a function that writes them), whole or not at all."""
    path = Path(path)
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        _add(tar, CONFIG_NAME, io.BytesIO(text.encode()), len(text.encode()))
        for name, content in members.items():
            if isinstance(content, bytes):
                _add(tar, name, io.BytesIO(content), len(content))
                continue
            # A scratch file on the archive's own file system: weights may not fit into memory.
            with tempfile.TemporaryFile(dir=path.parent) as stream:
                _run_writer(content, stream)
                size = stream.tell()
                stream.seek(0)
                _add(tar, name, stream, size)


class _ErrorKeeper(io.RawIOBase):
    """Passes writes on and keeps the OSError that torch.save would hide behind a RuntimeError of its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
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
