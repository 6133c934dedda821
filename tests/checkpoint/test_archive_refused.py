# SPDX-License-Identifier: Apache-2.0
"""Broken or hostile `.nemo` archives: refused with a message; nothing in them is run, and no files remain."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint import tar_index
from nemo_launcher.checkpoint.archive import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Archive,
    DamagedArchive,
    read_leading_config,
)
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import UserError
from tests.archives import write_tar

pytestmark = pytest.mark.unit


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.nemo: no such .nemo file or folder"):
        Archive(tmp_path / "none.nemo")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x1f\x8b\x08\x00 gzip?", b"\0" * 5000, b"text\n" * 500]
)
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nemo").write_bytes(content)
    with pytest.raises(UserError) as error:
        Archive(tmp_path / "a.nemo")
    assert str(tmp_path / "a.nemo") in str(error.value)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archive_cut_anywhere_is_refused(mode: str, tmp_path: Path) -> None:
    """An archive truncated at any point is never read as complete."""
    generator = torch.Generator().manual_seed(0)
    weights = bytes(torch.randint(0, 256, (20_000,), generator=generator, dtype=torch.uint8).tolist())
    members = {"./model_config.yaml": b"a: 1\n", f"./{WEIGHTS_NAME}": weights}
    whole = write_tar(tmp_path / "whole.nemo", members, mode).read_bytes()
    # Two headers, the first file's block, the weights. The rest of a tar is padding, which gzip compresses to 100
    # bytes.
    limit = 2 * 512 + 512 + 20_000 if mode == "w" else len(whole) - 200
    for size in [1, 100, 511, 512, 513, 1024, 1025, 1535, 1536, 1537, 5000, limit // 2, limit - 600, limit - 1]:
        (tmp_path / "cut.nemo").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.nemo"), Archive(tmp_path / "cut.nemo") as archive:
            archive.open(WEIGHTS_NAME).read()


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "a.nemo", {"model_config.yaml": bytes(range(256)) * 20}, "w:gz").read_bytes()
    (tmp_path / "a.nemo").write_bytes(content[:40] + b"\xff" * 20 + content[60:])
    with pytest.raises(UserError, match=r"a\.nemo"), Archive(tmp_path / "a.nemo") as archive:
        archive.config()


@pytest.mark.parametrize("as_folder", [False, True])
def test_without_config_it_is_no_checkpoint(as_folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.nemo"
    if as_folder:
        path.mkdir()
        (path / WEIGHTS_NAME).write_bytes(b"x")
    else:
        write_tar(path, {WEIGHTS_NAME: b"x"})
    with pytest.raises(UserError, match=r"a\.nemo: holds no model_config\.yaml: it is not a NeMo checkpoint"):
        Archive(path)


@pytest.mark.parametrize("name", ["../evil", "/evil", "tokenizer/../../evil", "./../evil"])
def test_member_outside_is_refused(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.nemo", {"model_config.yaml": b"a: 1\n", name: b"x"})
    with pytest.raises(UserError, match=r"leads outside the folder|is not a relative name"):
        Archive(path)
    assert files_in(tmp_path) == {"a.nemo"}


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_only_regular_files_are_taken(kind: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.nemo", "w") as tar:
        info = tarfile.TarInfo("model_config.yaml")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"a: 1\n"))
        info = tarfile.TarInfo("tokenizer/odd")
        info.type, info.linkname = kind, str(tmp_path / "secret")
        tar.addfile(info)
    with pytest.raises(UserError, match=rf"a\.nemo: tokenizer/odd: is {word}"):
        Archive(tmp_path / "a.nemo")


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("x", "x", "twice"),
        ("./x", "x", "twice"),
        ("tokenizer/A", "tokenizer/a", "only by case or Unicode"),
        ("\u00e9", "e\u0301", "only by case or Unicode"),
        ("tokenizer", "tokenizer/a", "is in a folder that is also a file"),
        (CONFIG_NAME, CONFIG_NAME, "twice"),
    ],
)
def test_two_members_of_one_name_are_refused(first: str, second: str, word: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.nemo", "w") as tar:
        for name in (CONFIG_NAME, first, second)[first == CONFIG_NAME :]:
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"a: 1\n"))
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match=word):
            read(tmp_path / "a.nemo")


def header_with(field: slice, value: bytes) -> bytes:
    """Return a tar whose first header has a modified field and a matching checksum."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(CONFIG_NAME)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"a: 1\n"))
    content = bytearray(stream.getvalue())
    content[field] = value
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    return bytes(content)


SIZE, KIND = slice(124, 136), slice(156, 157)


@pytest.mark.parametrize(
    "content",
    [
        header_with(SIZE, b"\x80" + (2**60).to_bytes(11, "big")),
        header_with(SIZE, b"\xff" * 12),
        header_with(SIZE, b"77777777777\0"),
        header_with(SIZE, b"-0000000001\0"),
        header_with(SIZE, b"\0" * 12),
        header_with(KIND, b"L"),
        header_with(slice(124, 157), b"\x80" + (2**50).to_bytes(11, "big") + b" " * 20 + b"x"),
        header_with(slice(124, 157), b"\x80" + (2**50).to_bytes(11, "big") + b" " * 20 + b"K"),
    ],
)
def test_a_header_that_says_more_than_the_file_holds_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nemo").write_bytes(content)
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match=r"a\.nemo"):
            read(tmp_path / "a.nemo")


def test_countless_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_MEMBERS", 500)
    with tarfile.open(tmp_path / "a.nemo", "w") as tar:
        for number in range(501):
            tar.addfile(tarfile.TarInfo(f"f{number}"))
    with pytest.raises(UserError, match="holds more than 500 files"):
        Archive(tmp_path / "a.nemo")


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: pytest.fail("it is unpacked"))
    with gzip.open(tmp_path / "a.nemo", "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, size in ((CONFIG_NAME, 5), (WEIGHTS_NAME, 200 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"a: 1\n".ljust(size, b"\0")))
    with pytest.raises(UserError, match=r"unpacks to more than 50 times its size|the file ends before"):
        Archive(tmp_path / "a.nemo")


def test_an_archive_that_the_temporary_folder_has_no_room_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.nemo", {CONFIG_NAME: b"a: 1\n", WEIGHTS_NAME: b"x" * 5000}, "w:gz")
    with Archive(path) as archive:
        full = shutil.disk_usage(tmp_path)._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(UserError, match=r"unpacks to 10,240 bytes, .* has 100 free\n.*tar -xzf"):
            archive.open(WEIGHTS_NAME)


def test_what_is_unpacked_has_no_name_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = write_tar(tmp_path / "a.nemo", {CONFIG_NAME: b"a: 1\n", WEIGHTS_NAME: b"weights"}, "w:gz")
    with Archive(path) as archive:
        assert archive.open(WEIGHTS_NAME).read() == b"weights"
        assert not list((tmp_path / "scratch").iterdir())


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("make", "word"),
    [(_link, "is a link, which is not followed"), (os.mkfifo, "is not a regular file, which is not followed")],
)
def test_a_folder_holds_regular_files_alone(make: Callable[[Path], Any], word: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / CONFIG_NAME).write_bytes(b"a: 1\n")
    make(folder / "tokenizer/odd")
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match=rf"base: tokenizer/odd: {word}"):
            read(folder)


def test_nothing_is_written_outside_the_folder_that_is_named(tmp_path: Path) -> None:
    with Archive(write_tar(tmp_path / "a.nemo", {CONFIG_NAME: b"a: 1\n", "t/a/b": b"x"})) as archive:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a").symlink_to(tmp_path)
        with pytest.raises(UserError, match="leads outside the folder"):
            archive.extract_folder("t", tmp_path / "out")
    assert not (tmp_path / "b").exists()


def test_the_configuration_of_an_archive_that_was_cut_short_can_be_had(tmp_path: Path) -> None:
    """It distinguishes a leftover of an interrupted conversion from somebody else's file."""
    path = tmp_path / "a.nemo"
    write_archive(path, {"converted_from": {"file": "x"}}, {WEIGHTS_NAME: b"w" * 5000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DamagedArchive):
        Archive(path)
    assert read_leading_config(path) == {"converted_from": {"file": "x"}}
    path.write_bytes(b"something else" * 100)
    assert read_leading_config(path) is None
    assert read_leading_config(tmp_path / "absent.nemo") is None
    os.mkfifo(tmp_path / "pipe.nemo")
    assert read_leading_config(tmp_path / "pipe.nemo") is None


def test_memory_given_as_an_archive_is_told() -> None:
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match=r"/proc/self/mem: is truncated or not a \.nemo archive"):
            read(Path("/proc/self/mem"))
