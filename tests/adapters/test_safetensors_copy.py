# SPDX-License-Identifier: Apache-2.0
"""The safetensors copy of an adapter in place of its `.nemo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_launcher.adapters.archive import new_adapters, read_adapter, save_safetensors
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests import forms, t5
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit


def copy_of(nemo: Path) -> Path:
    """Write the copy of an adapter beside it."""
    save_safetensors(nemo.with_suffix(".safetensors"), *read_adapter(nemo))
    return nemo.with_suffix(".safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_it_holds_what_the_archive_holds(tiny_base: Path, method: str, tmp_path: Path) -> None:
    nemo = forms.make_adapter(tmp_path / "a.nemo", tiny_base, method)
    (config, state), (own, copied) = read_adapter(nemo), read_adapter(copy_of(nemo))
    assert own == config
    assert {key: part.keys() for key, part in copied.items()} == {key: part.keys() for key, part in state.items()}
    assert all(torch.equal(tensor, copied[key][name]) for key, part in state.items() for name, tensor in part.items())
    ours, theirs = forms.logits_here(tiny_base, nemo), forms.logits_here(tiny_base, nemo.with_suffix(".safetensors"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_a_t5_adapters_names_are_kept(method: str, tmp_path: Path) -> None:
    base = t5.tiny_base(tmp_path / "base.nemo")
    nemo = forms.make_adapter(tmp_path / "a.nemo", base, method)
    assert read_adapter(copy_of(nemo))[1].keys() == read_adapter(nemo)[1].keys()


def test_training_continues_from_it(tiny_base: Path, tmp_path: Path) -> None:
    nemo = forms.make_adapter(tmp_path / "a.nemo", tiny_base, METHODS[0])
    section = model_section(METHODS[0]) | {"restore_path": str(copy_of(nemo))}
    state = new_adapters(load_base(tiny_base), section).state_dict()
    assert torch.equal(*(next(iter(next(iter(found.values())).values())) for found in (state, read_adapter(nemo)[1])))


def test_the_launcher_reads_its_outline(tiny_base: Path, tmp_path: Path) -> None:
    nemo = forms.make_adapter(tmp_path / "a.nemo", tiny_base, METHODS[0])
    archive, copy = read_outline(nemo), read_outline(copy_of(nemo))
    assert archive is not None
    assert copy is not None
    assert copy.config == archive.config
    assert copy.weights_problem() is None


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({"model_config": "{"}, {}, "not JSON"),
        ({"model_config": "[1]"}, {}, "is a list, not an object"),
        ({"model_config": json.dumps({"language_model_path": 3})}, {}, "language_model_path"),
        (
            {"model_config": json.dumps({"language_model_path": "x"})},
            {"weight": 1.0},
            "is not the name of an adapter's",
        ),
        ({"format": "pt"}, {}, "is a safetensors file, not a .nemo"),
    ],
)
def test_other_files_are_named(metadata: dict[str, str], tensors: dict[str, float], words: str, tmp_path: Path) -> None:
    values = {name: torch.tensor([value]) for name, value in tensors.items()} or {"a:b.c": torch.ones(1)}
    save_file(values, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path / "a.safetensors")
    assert words in str(error.value)


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="is truncated"):
        read_adapter(tmp_path / "a.safetensors")
