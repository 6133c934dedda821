# SPDX-License-Identifier: Apache-2.0
"""Batches from stored hidden states: the loss and gradients of batches without them, and what is computed when."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_launcher.adapters import registry
from nemo_launcher.data.cache import FOLDER_NAME
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.errors import UserError
from nemo_launcher.training.hidden_cache import SUFFIX
from nemo_launcher.training.hidden_states import check_can_store
from tests import t5
from tests.engine import random_tree, randomize, tiny_gpt_nemo
from tests.hidden import Setting, sorted_tree
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_nemo(tmp_path_factory.mktemp("four") / "base.nemo", num_hidden_layers=4)


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "base.nemo")


def check_bits(setting: Setting, samples: Sequence[Any], layer: int, **changes: Any) -> None:
    """Check that a batch of all samples has the same loss and gradients, bit by bit, in the same rows."""
    plain, _ = setting.loaders(samples, samples[:3], cached=False, **changes)
    wanted = setting.gradients(plain)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in wanted[0][1])
    train, _ = setting.loaders(samples, samples[:3], **changes)
    assert set(setting.ran) == set(range(layer))
    setting.ran.clear()
    torch.testing.assert_close(setting.gradients(train), wanted, rtol=0, atol=0)
    assert min(setting.ran, default=layer) == layer


@pytest.mark.parametrize("method", METHODS)
def test_a_gpt_has_the_same_gradients(method: str, four_layers: Path, tmp_path: Path) -> None:
    check_bits(Setting(four_layers, tmp_path, method=method), sorted_tree(), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_states_are_stored_as_they_are(dtype: torch.dtype, four_layers: Path, tmp_path: Path) -> None:
    setting = Setting(four_layers, tmp_path, dtype=dtype)
    check_bits(setting, sorted_tree(), 2)
    rows, validated = (path.stat().st_size // (2 * 32) for path in setting.files())
    assert max(rows, validated) < sum(len(sample.input_ids) for sample in sorted_tree())


@pytest.mark.parametrize("layer", [1, 2])
def test_a_t5_has_the_same_gradients(layer: int, t5_base: Path, tmp_path: Path) -> None:
    """Its encoder has two layers: without adapters there, its output is stored."""
    samples = sorted(t5.random_samples(9), key=lambda sample: sample.input_ids)
    check_bits(Setting(t5_base, tmp_path, first={"encoder": layer, "decoder": 1}), samples, layer)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 2},
        {"data__share_prefix": False},
        {"data__pack": False},
        {"nemo_compat": True},
        {"data__num_workers": 2},
        {"data__traversal": "depth"},
        {"activations_checkpoint_granularity": "full", "activations_checkpoint_method": "uniform"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_rows_have_the_same_gradients_but_for_rounding(
    changes: dict[str, Any], four_layers: Path, tmp_path: Path
) -> None:
    samples = random_tree(3, 300, count=14, max_length=100)
    setting = Setting(four_layers, tmp_path)
    options = {"global_batch_size": 5, "data__shuffle": True} | changes
    loaders = [setting.loaders(samples, samples[:4], cached=cached, **options) for cached in (False, True)]
    for plain, stored in zip(*loaders, strict=True):
        wanted, found = setting.gradients(plain), setting.gradients(stored)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_trees_of_rows_start_from_stored_states(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    options: dict[str, Any] = {"data__traversal": "depth", "micro_batch_size": 1}
    loaders = [setting.loaders(samples, samples, cached=cached, **options)[0] for cached in (False, True)]
    assert any(
        isinstance(micro, RowForest) and micro.roots[0].children for micro in next(iter(loaders[1])).micro_batches
    )
    wanted = setting.gradients(loaders[0])
    setting.ran.clear()

    torch.testing.assert_close(setting.gradients(loaders[1]), wanted, rtol=1e-4, atol=1e-5)

    assert min(setting.ran) == 2


def test_t5_prompts_that_are_equal_are_computed_once(t5_base: Path, tmp_path: Path) -> None:
    samples = t5.random_samples(4)
    setting = Setting(t5_base, tmp_path, first={"encoder": 1, "decoder": 0})
    loaders = [setting.loaders(samples * 3, samples, cached=cached)[0] for cached in (False, True)]
    wanted, found = map(setting.gradients, loaders)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert {path.stat().st_size for path in setting.files()} == {
        24 * 4 * sum(len(sample.input_ids) for sample in samples) + 276
    }


def test_identical_records_are_computed_once(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), [sorted_tree()[0]] * 30
    stored, _ = setting.loaders(samples, samples, global_batch_size=10)
    assert setting.ran == [0, 1]  # once each, and validation has the same file
    wanted, found = map(setting.gradients, (setting.loaders(samples, samples, cached=False)[0], stored))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_they_are_computed_once(four_layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    setting.loaders(samples, samples[:3])
    first, files = setting.ran.copy(), setting.files()
    assert len(files) == 2
    assert first
    assert capsys.readouterr().out.count("bytes, 0.0 GiB) are written to") == 2

    setting.loaders(samples, samples[:3])

    assert setting.ran == []
    assert setting.files() == files
    assert f"hidden states are read from {files[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["samples", "layer", "dtype", "weight"])
def test_another_file_for_other(what: str, four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    setting.loaders(samples, samples)
    (before,) = setting.files()
    if what == "samples":
        setting.loaders(sorted_tree(5), sorted_tree(5))
    elif what == "weight":  # by less than the base's checksum shows
        other = Setting(four_layers, tmp_path)
        other.base.model.decoder.layers[1].self_attention.linear_proj.weight.data[0, 0] *= 1 + 1e-6
        other.loaders(samples, samples)
    else:
        options: dict[str, Any] = {"first": {"decoder": 3}} if what == "layer" else {"dtype": torch.bfloat16}
        Setting(four_layers, tmp_path, **options).loaders(samples, samples)

    assert len(setting.files()) == 2
    assert before in setting.files()


def test_weights_above_do_not_matter(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    setting.loaders(samples, samples)
    setting.gradients(setting.loaders(samples, samples)[0])  # packs weights and changes none
    randomize(setting.adapters, seed=3)
    setting.loaders(samples, samples)
    assert len(setting.files()) == 1


def test_a_damaged_file_is_computed_again(
    four_layers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    setting.loaders(samples, samples)
    (path,) = setting.files()
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])

    setting.loaders(samples, samples)

    assert f"{path} is damaged" in capsys.readouterr().out
    assert setting.ran
    assert path.read_bytes() == content


def test_files_that_were_not_used_for_a_month_are_removed(four_layers: Path, tmp_path: Path) -> None:
    setting = Setting(four_layers, tmp_path)
    folder = tmp_path / "data" / FOLDER_NAME
    folder.mkdir(parents=True)
    for name in ("0" * 64, "1" * 64, "mine"):
        (folder / f"{name}{SUFFIX}").write_text("")
        if not name.startswith("1"):
            os.utime(folder / f"{name}{SUFFIX}", (1, 1))

    setting.loaders(sorted_tree(), sorted_tree())

    names = [path.stem for path in setting.files()]
    assert len(names) == 3
    assert {"1" * 64, "mine"} < set(names)


# --- refusals ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_refused_before_anything_is_computed(
    four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))

    with pytest.raises(UserError) as caught:
        setting.loaders(samples, samples)

    assert setting.ran == []
    assert setting.files() == setting.files("results") == []
    first, second = caught.value.problems
    assert first.where == "model.data.cache_hidden"
    assert "1,000 bytes, 0.0 GiB free" in first.what
    assert str(tmp_path / "data") in first.what
    assert str(tmp_path / "results") in second.what
    assert "cache_dir=/another/folder" in first.fix


@pytest.mark.parametrize("why", ["full", "unwritable"])
def test_the_results_folder_is_used_if_the_first_is(
    why: str, four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    usage = shutil.disk_usage
    if why == "full":
        full = SimpleNamespace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full if "data" in Path(path).parts else usage(path))
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / FOLDER_NAME).write_text("")

    setting.loaders(samples, samples)

    assert len(setting.files(f"results/{FOLDER_NAME}")) == 1
    assert setting.files() == []


def problems_of(setting: Setting, **options: bool) -> list[tuple[str, str, str]]:
    with pytest.raises(UserError) as caught:
        check_can_store(setting.base, setting.adapters.method, **({"nemo_compat": False} | options))
    return [(problem.where, problem.what, problem.fix) for problem in caught.value.problems]


def test_adapters_in_the_first_layer_are_refused(four_layers: Path, tmp_path: Path) -> None:
    (found,) = problems_of(Setting(four_layers, tmp_path, first={"decoder": 0}))
    assert found[0] == "model.data.cache_hidden"
    assert found[1].startswith("layer 0 has adapters")
    assert f"model.{registry.method_of(model_section(METHODS[0])).block}.layers=" in found[2]
    assert '"2-3"' in found[2]


def test_adapters_in_the_encoder_are_refused(t5_base: Path, tmp_path: Path) -> None:
    (found,) = problems_of(Setting(t5_base, tmp_path, first={"encoder": 0, "decoder": 2}))
    assert found[1].startswith("the encoder's layer 0 has adapters")
    assert '"1-1"' in found[2]  # valid for both stacks, of two and three layers


def test_dropout_of_the_base_is_refused(four_layers: Path, tmp_path: Path) -> None:
    setting = Setting(four_layers, tmp_path)
    check_can_store(setting.base, setting.adapters.method, nemo_compat=True)
    setting.base.config["hidden_dropout"] = 0.1

    check_can_store(setting.base, setting.adapters.method, nemo_compat=False)
    (found,) = problems_of(setting, nemo_compat=True)

    assert "trains with the base's dropout (0.1)" in found[1]


def test_a_file_is_no_more_accessible_than_the_data(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    (tmp_path / "data").mkdir()
    for name in ("squad_train.jsonl", "squad_val.jsonl"):
        (tmp_path / "data" / name).write_text("")
        os.chmod(tmp_path / "data" / name, 0o600)

    setting.loaders(samples, samples)

    assert [path.stat().st_mode & 0o777 for path in setting.files()] == [0o600]


def test_what_data_loaders_get_is_picklable(four_layers: Path, tmp_path: Path) -> None:
    setting, samples = Setting(four_layers, tmp_path), sorted_tree()
    train, _ = setting.loaders(samples, samples)
    copied = pickle.loads(pickle.dumps(train.collate_fn))
    (found,) = copied(list(enumerate(samples))).micro_batches
    (wanted,) = train.collate_fn(list(enumerate(samples))).micro_batches
    assert torch.equal(found.hidden.index, wanted.hidden.index)
