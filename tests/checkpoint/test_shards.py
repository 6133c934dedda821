# SPDX-License-Identifier: Apache-2.0
"""Bases that NeMo wrote with one file per rank equal those in a single file, in a tar, a gzip tar or a folder."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from nemo_launcher.requirements import is_at_least
from tests import gpt, t5
from tests.checkpoint.sharding import _LAYER, GPTS, Cut, gpt_config, gpt_cut, sharded_gpt, stored_gpt
from tests.engine import logits_of

pytestmark = pytest.mark.unit

SIZES = [(2, 1), (1, 2), (2, 2), (4, 1)]


# --- equal to one file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", GPTS)
def test_a_gpt_of_many_files_is_that_of_one(name: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    config = gpt_config(name)
    stored = stored_gpt(config)
    one = gpt.write_gpt(tmp_path / "one.nemo", config, {WEIGHTS_NAME: stored})
    many = sharded_gpt(tmp_path / "many.nemo", config, stored, *sizes)
    ids = torch.randint(0, 200, (1, 30), generator=torch.Generator().manual_seed(1))
    wanted, found = (logits_of(path, ids)[0] for path in (one, many))
    assert found.size(1) >= wanted.size(1)
    # older versions of torch round products of other sizes otherwise; the head may have more rows
    allowed = 0.0 if is_at_least("torch", "2.13") else 1e-6
    torch.testing.assert_close(found[:, : wanted.size(1)], wanted, rtol=0, atol=allowed)
    facts = inspect(many)
    assert (facts["tensor_model_parallel_size"], facts["pipeline_model_parallel_size"]) == sizes
    assert facts["fingerprint"] == inspect(one)["fingerprint"]


def t5_cut(config: dict[str, Any], tensor: int, pipeline: int) -> Cut:
    """The first half of the stages holds the encoder; each stage of a stack has its table of relative positions."""
    half = max(pipeline // 2, 1)
    layers = config["encoder"]["num_layers"] // half

    def stages_of(name: str) -> Iterable[int]:
        first = half if "decoder" in name.removeprefix("enc_dec_model.enc_dec_model.") and pipeline > 1 else 0
        match = _LAYER.fullmatch(name)
        if match:
            return [first + int(match[2]) // layers]
        if "tokens_head" in name:
            return [pipeline - 1]
        if "relative_position" in name:
            return range(first, first + half)
        return [first if "_embedding." in name else first + half - 1]

    return Cut(tensor, pipeline, config["encoder"]["activation"].startswith("fast-"), stages_of, layers)


@pytest.fixture(scope="module", params=["gated", "plain"])
def t5_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_heads": 4, "d_kv": 6, "num_decoder_layers": 2}
    if request.param == "plain":
        changes |= {"feed_forward_proj": "relu", "tied": True}
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "base.nemo", **changes)


@pytest.mark.parametrize("sizes", [*SIZES, (2, 4)], ids=str)
def test_a_t5_of_many_files_is_that_of_one(sizes: tuple[int, int], t5_base: Path, tmp_path: Path) -> None:
    with Archive(t5_base) as archive:
        config, weights = archive.config(), read_tensors(archive, WEIGHTS_NAME)
        members: dict[str, Any] = {
            name: archive.open(name).read() for name in archive.names - {CONFIG_NAME, WEIGHTS_NAME}
        }
    keys = dict(zip(("tensor_model_parallel_size", "pipeline_model_parallel_size"), sizes, strict=True))
    for name, part in t5_cut(config, *sizes).files(weights).items():
        members[name] = lambda stream, part=part: torch.save({k: w.clone() for k, w in part.items()}, stream)
    write_archive(tmp_path / "many.nemo", config | keys, members)
    samples = t5.random_samples(3)
    wanted, found = (t5.logits_of(load_base(path), samples) for path in (t5_base, tmp_path / "many.nemo"))
    torch.testing.assert_close(found[:, : wanted.size(1)], wanted, rtol=0, atol=1e-6)
    assert inspect(tmp_path / "many.nemo")["fingerprint"] == inspect(t5_base)["fingerprint"]


@pytest.mark.parametrize("form", ["folder", "gzip"])
def test_files_of_ranks_in_a_folder_and_in_a_gzip_tar(form: str, tmp_path: Path) -> None:
    config = gpt_config("legacy_gated")
    plain = sharded_gpt(tmp_path / "plain.nemo", config, stored_gpt(config), 2, 2)
    with tarfile.open(plain) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    if form == "gzip":
        with tarfile.open(tmp_path / "gzip", "w:gz") as tar:
            tar.add(tmp_path / "folder", arcname=".")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(logits_of(tmp_path / form, ids), logits_of(plain, ids), rtol=0, atol=0)


# --- refusing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("tp_rank_00_pp_rank_000", "the weights of 1 of 4 ranks are absent: tensor rank 0 of pipeline stage 0"),
        ("tp_rank_01_pp_rank_001", "the weights of 1 of 4 ranks are absent: tensor rank 1 of pipeline stage 1"),
        ("pp_rank_001", "the weights of 2 of 4 ranks are absent: tensor rank 0 of pipeline stage 1, tensor rank 1"),
    ],
)
def test_absent_files_are_named(absent: str, words: str, tmp_path: Path) -> None:
    config = gpt_config("legacy")
    files = gpt_cut(config, 2, 2).files(stored_gpt(config))
    left = {name: part for name, part in files.items() if absent not in name}
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    with pytest.raises(UserError, match=f"a.nemo: {words}"):
        load_base(gpt.write_gpt(tmp_path / "a.nemo", config | sizes, left))


def test_a_weight_that_one_rank_lacks_is_named(tmp_path: Path) -> None:
    config = gpt_config("mcore_gated")
    files = gpt_cut(config, 2, 1).files(stored_gpt(config))
    del files[f"mp_rank_01/{WEIGHTS_NAME}"]["model.decoder.layers.3.mlp.linear_fc2.weight"]
    with pytest.raises(UserError, match=r"decoder\.layers\.3\.mlp\.linear_fc2\.weight: is absent from some"):
        load_base(gpt.write_gpt(tmp_path / "a.nemo", config, files))


def test_a_separate_up_projection_without_a_gated_activation_is_named(tmp_path: Path) -> None:
    config = gpt_config("legacy_gated")
    path = gpt.write_gpt(tmp_path / "a.nemo", config | {"activation": "gelu"}, {WEIGHTS_NAME: stored_gpt(config)})
    with pytest.raises(UserError, match=r"linear_fc1_up\.weight: does not exist in the model"):
        load_base(path)
