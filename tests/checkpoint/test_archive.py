# SPDX-License-Identifier: Apache-2.0
"""`.nemo` archives: reading every form, refusing broken or hostile ones, writing atomically."""

from __future__ import annotations

import errno
import io
import resource
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter, save_adapter
from nemo_launcher.checkpoint.archive import (
    WEIGHTS_NAME,
    Archive,
)
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.errors import UserError
from tests.archives import write_tar

pytestmark = pytest.mark.unit


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_plain_and_gzip_tar_are_read(mode: str, prefix: str, tmp_path: Path) -> None:
    members = {f"{prefix}model_config.yaml": b"a: 1\n", f"{prefix}tokenizer/x.json": b"{}"}
    with Archive(write_tar(tmp_path / "a.nemo", members, mode)) as archive:
        assert archive.names == {"model_config.yaml", "tokenizer/x.json"}
        assert archive.config() == {"a": 1}
        assert archive.open("tokenizer/x.json").read() == b"{}"


def test_extracted_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "base/tokenizer").mkdir(parents=True)
    (tmp_path / "base/model_config.yaml").write_text("a: 1\n")
    (tmp_path / "base/tokenizer/x.json").write_text("{}")
    with Archive(tmp_path / "base") as archive:
        assert archive.config() == {"a": 1}
        assert archive.extract_folder("tokenizer", tmp_path / "out")
    assert (tmp_path / "out/x.json").read_text() == "{}"


def test_extract_folder_tells_when_there_is_none(tmp_path: Path) -> None:
    with Archive(write_tar(tmp_path / "a.nemo", {"model_config.yaml": b"a: 1\n"})) as archive:
        assert not archive.extract_folder("tokenizer", tmp_path / "out")


def test_absent_member_is_named(tmp_path: Path) -> None:
    with (
        Archive(write_tar(tmp_path / "a.nemo", {"model_config.yaml": b"a: 1\n"})) as archive,
        pytest.raises(UserError, match=r"model_weights\.ckpt: is absent"),
    ):
        archive.open(WEIGHTS_NAME)


# --- writing ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    state = {"model.language_model.encoder.layers.0:adapter_1": {"linear_in.weight": torch.arange(6.0).view(2, 3)}}
    save_adapter(tmp_path / "new/folder/a.nemo", {"seed": 1, "data": {"x": [1, None]}}, state)
    config, read = read_adapter(tmp_path / "new/folder/a.nemo")
    assert config == {"seed": 1, "data": {"x": [1, None]}}
    torch.testing.assert_close(read, state, rtol=0, atol=0)
    with tarfile.open(
        tmp_path / "new/folder/a.nemo", "r:"
    ) as tar:  # NeMo's own format: uncompressed, names start with ./
        assert tar.getnames() == ["./model_config.yaml", "./model_weights.ckpt"]


def _fail(stream: IO[bytes]) -> None:
    stream.write(b"half")
    raise RuntimeError("in the middle")


def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.nemo"
    write_archive(path, {"a": 1}, {"x": b"old"})
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="in the middle"):
        write_archive(path, {"a": 2}, {"y": b"new", "x": _fail})
    assert path.read_bytes() == before
    assert files_in(tmp_path) == {"a.nemo"}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Simulate a full disk: no file may exceed 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_adapter_and_nothing_else(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "results/a.nemo"
    save_adapter(path, {"seed": 1}, {"key": {"weight": torch.ones(3)}})
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large"):
        save_adapter(path, {"seed": 2}, {"key": {"weight": torch.ones(100_000)}})
    assert path.read_bytes() == before
    assert files_in(path.parent) == {"a.nemo"}


def test_full_disk_stays_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts turn an OSError into a plain message, and print a traceback for other errors."""

    class FullDisk(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.tell() + len(data) > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def scratch(dir: Path) -> FullDisk:
        return FullDisk()

    monkeypatch.setattr(tempfile, "TemporaryFile", scratch)
    with pytest.raises(OSError, match="No space left") as error:
        save_adapter(tmp_path / "a.nemo", {"seed": 2}, {"key": {"weight": torch.ones(100_000)}})
    assert error.value.errno == errno.ENOSPC
