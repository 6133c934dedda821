# SPDX-License-Identifier: Apache-2.0
"""Models cut into the files of Megatron's ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME
from tests import gpt
from tests.megatron.test_gpt_options import PLAIN, ROPE

State = dict[str, Tensor]

LLAMA = ROPE | {"normalization": "rmsnorm", "bias": False, "share_embeddings_and_output_weights": False}


GPTS: dict[str, dict[str, Any]] = {
    "legacy": {},
    "legacy_gated": LLAMA | {"activation": "swiglu"},
    "legacy_fast_gated": LLAMA | {"activation": "fast-swiglu"},
    "mcore": {"mcore_gpt": True, "layernorm_zero_centered_gamma": True},
    "mcore_gated": LLAMA | {"activation": "fast-geglu", "num_query_groups": 4, "mcore_gpt": True},
}


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
