# SPDX-License-Identifier: Apache-2.0
"""Models shared by several test files."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.conversion.convert import convert
from tests.engine import save_llama
from tests.nemo2 import folder_of


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose head is its embedding, and the base converted from it. Treat as read-only."""
    folder = save_llama(tmp_path_factory.mktemp("tied") / "hf", head_dim=16, hidden_size=16, intermediate_size=16)
    convert(folder, folder.parent / "base.nemo")
    return folder


@pytest.fixture(scope="module")
def weights(tiny_base: Path) -> dict[str, Tensor]:
    """The tensors of the tiny base, as they are stored."""
    with Archive(tiny_base) as archive:
        return {name: weight.clone() for name, weight in read_tensors(archive, WEIGHTS_NAME).items()}


@pytest.fixture
def folder(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny base as a folder of NeMo 2."""
    return folder_of(tiny_base, weights, tmp_path / "folder")
