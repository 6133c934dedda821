# SPDX-License-Identifier: Apache-2.0
"""Targets of conversions: only our own bases are replaced, if they are outdated or incomplete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.conversion import convert as conversion
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from tests.engine import save_llama

pytestmark = pytest.mark.unit


def test_what_is_not_ours_is_not_replaced(tied: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.nemo"
    write_archive(adapter, {"language_model_path": "base.nemo"}, {})
    (tmp_path / "text.nemo").write_text("somebody's")
    (tmp_path / "folder.nemo").mkdir()
    shutil.copy(tied.parent / "base.nemo", tmp_path / "other_source.nemo")
    other = shutil.copytree(tied, tmp_path / "another")
    targets = {
        "adapter.nemo": "was not made by a conversion",
        "text.nemo": "was not made by a conversion",
        "folder.nemo": "is a folder",
        "other_source.nemo": "was made from another model, hf",
        "another/base.nemo": "is inside the folder",
        "another": "is the model to be converted",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, words in targets.items():
        with pytest.raises(UserError, match=words) as error:
            convert(other, tmp_path / name)
        assert "model.nemo_path" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_the_same_name_elsewhere_is_another_source(tied: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.nemo"
    convert(save_llama(tmp_path / "a/hf"), base)
    before = base.read_bytes()
    with pytest.raises(UserError, match=r"was made from another model, .*/a/hf, so it is not replaced"):
        convert(save_llama(tmp_path / "b/hf", seed=1), base)
    assert base.read_bytes() == before
    (tmp_path / "a").rename(tmp_path / "moved")
    assert not convert(tmp_path / "moved/hf", base)


def test_a_base_of_an_older_converter_is_made_anew(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "VERSION", conversion.VERSION - 1)
    assert convert(tied, tmp_path / "base.nemo")
    assert not convert(tied, tmp_path / "base.nemo")
    monkeypatch.undo()
    assert convert(tied, tmp_path / "base.nemo")


@pytest.mark.parametrize("size", [3000, 40000, -12000])
def test_a_base_of_ours_that_is_cut_short_is_made_again(size: int, tied: Path, tmp_path: Path) -> None:
    whole = (tied.parent / "base.nemo").read_bytes()
    target = tmp_path / "base.nemo"
    target.write_bytes(whole[:size])
    assert convert(tied, target)
    assert target.read_bytes() == whole


def test_room_is_looked_for_before_anything_is_written(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(UserError, match=r"model.nemo_path: the conversion needs .* MiB free"):
        convert(tied, tmp_path / "results/base.nemo")
    assert not list(tmp_path.iterdir())
