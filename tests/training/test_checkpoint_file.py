# SPDX-License-Identifier: Apache-2.0
"""The format of training checkpoints: lossless, and damaged or pickled files are not used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_launcher.errors import UserError, WriteError
from nemo_launcher.training.checkpoint_file import (
    DamagedCheckpointError,
    ForeignCheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from nemo_launcher.training.nemo.checkpointing import PlainCheckpointIO

pytestmark = pytest.mark.unit

CONTENT: dict[str, Any] = {
    "state_dict": {"layer:adapter": {"weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(1.5)}},
    "half": torch.ones(3, dtype=torch.bfloat16),
    "shared": [torch.zeros(2, 2).t(), torch.zeros(0)],
    "numbers": {"lr": 0.1 + 0.2, "none": None, "big": 2**60, "inf": float("inf"), "flags": (True, False)},
    "by_index": {0: {"step": torch.tensor(3.0)}, 1: "text"},
    "$tensor": "a key that looks like ours",
    "nested": {"$items": [1, {"$float": "x"}]},
}


def assert_equal(mine: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0)
    elif isinstance(wanted, dict):
        assert list(mine) == list(wanted)
        for key, value in wanted.items():
            assert_equal(mine[key], value)
    elif isinstance(wanted, list | tuple):
        assert type(mine) is type(wanted)
        for left, right in zip(mine, wanted, strict=True):
            assert_equal(left, right)
    else:
        assert (type(mine), mine) == (type(wanted), wanted)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", CONTENT | {"tree": OmegaConf.create({"a": [1, 2]})})
    assert_equal(read_checkpoint(tmp_path / "a.ckpt"), CONTENT | {"tree": {"a": [1, 2]}})
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_nan_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", {"value": float("nan")})
    value = read_checkpoint(tmp_path / "a.ckpt")["value"]
    assert value != value


def test_what_has_no_form_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a/0: a object"):
        write_checkpoint(tmp_path / "a.ckpt", {"a": [object()]})
    assert list(tmp_path.iterdir()) == []


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for change in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= change
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError):
                read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 30, 95, 200, -1, None])
def test_a_file_cut_short_or_grown_is_damaged(length: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more" if length is None else whole[:length])
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(path)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_not_run(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": Payload(tmp_path / "run")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForeignCheckpointError):
        read_checkpoint(path)
    with pytest.raises(UserError, match="only unpickling could read"):
        PlainCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "run").exists()


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError) as caught:
        write_checkpoint(path, {"a": 2})
    assert caught.value.filename == str(path)
    assert read_checkpoint(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
