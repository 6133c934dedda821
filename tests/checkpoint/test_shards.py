# SPDX-License-Identifier: Apache-2.0
"""Bases that NeMo wrote with one file per rank equal those in a single file, in a tar, a gzip tar or a folder."""

from __future__ import annotations

import re
import tarfile
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive, write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from nemo_launcher.megatron.sizes import ParallelSizes
from tests import gpt, t5
from tests.engine import logits_of
from tests.megatron.test_gpt_options import PLAIN, ROPE
from tests.world import run_world

pytestmark = pytest.mark.unit

State = dict[str, Tensor]
SIZES = [(2, 1), (1, 2), (2, 2), (4, 1)]
LLAMA = ROPE | {"normalization": "rmsnorm", "bias": False, "share_embeddings_and_output_weights": False}
# name -> the base's configuration; fast-: gate and up-projection in one matrix
GPTS: dict[str, dict[str, Any]] = {
    "legacy": {},
    "legacy_gated": LLAMA | {"activation": "swiglu"},
    "legacy_fast_gated": LLAMA | {"activation": "fast-swiglu"},
    "mcore": {"mcore_gpt": True, "layernorm_zero_centered_gamma": True},
    "mcore_gated": LLAMA | {"activation": "fast-geglu", "num_query_groups": 4, "mcore_gpt": True},
}


# --- cutting a model as Megatron does ---------------------------------------------------------------------------

_ROWS = re.compile(
    r".*(query_key_value|\.query|\.key_value|linear_qkv|dense_h_to_4h|dense_h_to_4h_2|linear_fc1)\.(weight|bias)"
    r"|.*word_embeddings\.weight|.*output_layer\.weight|.*tokens_head\.bias"
)
_COLUMNS = re.compile(r".*(attention\.dense|dense_4h_to_h|linear_proj|linear_fc2)\.weight")
_TOKENS = re.compile(r".*(word_embeddings|output_layer|tokens_head)\.(weight|bias)")
_LAYER = re.compile(r"(.*layers\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Cut:
    """A division of a model. stages_of: the pipeline stages that hold a weight; fused: gate and up are one matrix."""

    tensor: int
    pipeline: int
    fused: bool
    stages_of: Callable[[str], Iterable[int]]
    layers: int

    def files(self, weights: State) -> dict[str, State]:
        """Return the weights by file; each stage numbers its layers from 0."""
        files: dict[str, State] = {}
        for stage in range(self.pipeline):
            for rank in range(self.tensor):
                name = f"mp_rank_{rank:02d}" if self.pipeline == 1 else f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"
                files[f"{name}/{WEIGHTS_NAME}"] = {
                    self._counted_anew(key): self._part(key, weight, rank)
                    for key, weight in weights.items()
                    if stage in self.stages_of(key)
                }
        return files

    def _counted_anew(self, name: str) -> str:
        match = _LAYER.fullmatch(name)
        return f"{match[1]}{int(match[2]) % self.layers}{match[3]}" if match else name

    def _part(self, name: str, weight: Tensor, rank: int) -> Tensor:
        if _TOKENS.fullmatch(name):  # padded for this number of ranks with arbitrary rows
            padding = torch.full((-len(weight) % (8 * self.tensor), *weight.shape[1:]), 7.0)
            return torch.cat((weight, padding)).chunk(self.tensor)[rank]
        if self.fused and re.fullmatch(r".*(dense_h_to_4h|linear_fc1)\.(weight|bias)", name):
            return torch.cat([half.chunk(self.tensor)[rank] for half in weight.chunk(2)])
        if _ROWS.fullmatch(name):
            return weight.chunk(self.tensor)[rank]
        return weight.chunk(self.tensor, 1)[rank] if _COLUMNS.fullmatch(name) else weight


def gpt_cut(config: dict[str, Any], tensor: int, pipeline: int) -> Cut:
    layers = config["num_layers"] // pipeline

    def stages_of(name: str) -> Iterable[int]:
        match = _LAYER.fullmatch(name)
        if match:
            return [int(match[2]) // layers]
        return [0] if ".embedding." in name else [pipeline - 1]

    return Cut(tensor, pipeline, config["activation"].startswith("fast-"), stages_of, layers)


def sharded_gpt(path: Path, config: dict[str, Any], stored: State, tensor: int, pipeline: int) -> Path:
    """Write a GPT divided into files; a tied head is stored again on the last of several stages."""
    tied = config["share_embeddings_and_output_weights"] and pipeline > 1
    if tied:
        mcore = bool(config.get("mcore_gpt"))
        source = (
            "model.embedding.word_embeddings.weight"
            if mcore
            else "model.language_model.embedding.word_embeddings.weight"
        )
        stored = stored | {"model.output_layer.weight" if mcore else "model.word_embeddings.weight": stored[source]}
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    return gpt.write_gpt(path, config | sizes, gpt_cut(config, tensor, pipeline).files(stored))


def gpt_config(name: str) -> dict[str, Any]:
    return gpt.CONFIG | PLAIN | {"num_layers": 4} | GPTS[name]


def stored_gpt(config: dict[str, Any]) -> State:
    weights = gpt.random_weights(config)
    if config.get("mcore_gpt"):
        return gpt.in_mcore_layout(weights)
    return gpt.joined_gates(weights) if config["activation"].startswith("fast-") else weights


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
    torch.testing.assert_close(found[:, : wanted.size(1)], wanted, rtol=0, atol=0)
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


# --- memory -----------------------------------------------------------------------------------------------------

BIG = {"hidden_size": 256, "ffn_hidden_size": 1024, "num_layers": 8, "num_attention_heads": 4}
MIB = 2**20


def anonymous_bytes() -> int:
    """Return this process's memory that is not backed by files."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@contextmanager
def peak_of_anonymous_memory():
    """Yield a list that holds the peak usage afterwards."""
    peaks, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.0005):
            peaks[0] = max(peaks[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()
        peaks[0] = max(peaks[0], anonymous_bytes())


def measure(tiny: str, big: str, results: str) -> None:
    """Load this rank's half of a model; write its peak and final memory increase."""
    sizes = ParallelSizes(tensor=2)
    load_base(tiny, sizes=sizes)  # warm-up of libraries, process groups, threads
    before = anonymous_bytes()
    with peak_of_anonymous_memory() as peaks:
        base = load_base(big, sizes=sizes)
    kept = anonymous_bytes() - before
    share = sum(parameter.numel() * 4 for parameter in base.model.parameters())
    figures = {"peak": peaks[0] - before, "kept": kept, "share": share}
    torch.save(figures, f"{results}/{torch.distributed.get_rank()}.pt")


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [1, 2, 4], ids=lambda ranks: f"{ranks}_files")
@pytest.mark.parametrize("name", ["legacy_gated", "mcore_gated"])
def test_a_rank_takes_its_share_and_no_more_than_a_file_beside_it(name: str, ranks: int, tmp_path: Path) -> None:
    config = gpt_config(name) | BIG
    stored = stored_gpt(config)
    big = sharded_gpt(tmp_path / "big.nemo", config, stored, ranks, 1)
    tiny = gpt.write_gpt(tmp_path / "tiny.nemo", gpt_config(name), {WEIGHTS_NAME: stored_gpt(gpt_config(name))})
    jobs = run_world(2, measure, (str(tiny), str(big), str(tmp_path)), tmp_path / "logs")
    assert [job.status for job in jobs] == [0, 0], jobs[0].output
    whole = sum(4 * weight.numel() for weight in stored.values())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["share"] == pytest.approx(whole / 2, rel=0.05)
        assert found["kept"] < found["share"] + 4 * MIB
        assert found["peak"] < found["share"] + whole / ranks + 4 * MIB
