# SPDX-License-Identifier: Apache-2.0
"""Files of hidden states that somebody removes or damages while a job uses them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.cache import FOLDER_NAME
from nemo_launcher.data.hidden_file import DamagedHiddenFileError, open_table
from nemo_launcher.errors import UserError
from nemo_launcher.training.hidden_cache import HiddenCache
from tests.engine import tiny_gpt_nemo
from tests.hidden import Setting, sorted_tree

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_nemo(tmp_path_factory.mktemp("four") / "base.nemo", num_hidden_layers=4)


def test_a_file_that_is_removed_is_still_trained_from(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    wanted = setting.gradients(setting.loaders(samples, samples, cached=False)[0])
    loader, _ = setting.loaders(samples, samples)
    (path,) = setting.files()
    path.unlink()
    torch.testing.assert_close(setting.gradients(loader), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 1000)], ids=["removed", "truncated"])
def test_a_file_that_is_damaged_before_it_is_used_is_told(
    damage: Callable[[Path], None], four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HiddenCache.find_or_fill

    def find_or_fill(*args: Any) -> Path:
        path = original(*args)
        damage(path)
        return path

    monkeypatch.setattr(HiddenCache, "find_or_fill", find_or_fill)
    with pytest.raises(UserError, match="removed or damaged while the job was using them"):
        Setting(four_layers, tmp_path).loaders(sorted_tree(), sorted_tree())


def test_a_pipe_in_its_place_is_not_waited_for(
    four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    setting.loaders(samples, samples)
    (path,) = setting.files()
    path.unlink()
    os.mkfifo(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: pytest.fail("opening it would wait for a writer"))
        with pytest.raises(DamagedHiddenFileError):
            open_table(path, verify=True)
    setting.loaders(samples, samples)
    assert setting.ran
    assert path.is_fifo()
    assert len(setting.files(f"results/{FOLDER_NAME}")) == 1
