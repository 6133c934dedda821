# SPDX-License-Identifier: Apache-2.0
"""Models and samples for steps on the meta device (tests.meta)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.gpt import packing as gpt_packing
from nemo_launcher.families.gpt.generation import GPTDecoding
from nemo_launcher.families.gpt.model import build_gpt
from nemo_launcher.families.gpt.samples import GPTChoices, GPTSample
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.t5 import packing as t5_packing
from nemo_launcher.families.t5.generation import T5Decoding
from nemo_launcher.families.t5.model import build_t5
from nemo_launcher.families.t5.samples import T5Choices, T5Sample
from nemo_launcher.families.t5.shape import T5Shape
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.sizes import ONE_RANK
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests.meta import META, Recorder, recorded
from tests.methods import model_section

VOCABULARY = 49152
_COMMON = {"layernorm_epsilon": 1e-5, "encoder_seq_length": 8192, "max_position_embeddings": 8192}
_SMOLLM = {"hidden_size": 576, "ffn_hidden_size": 1536, "num_attention_heads": 9, "num_query_groups": 3}
_LARGE = {"hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32, "num_query_groups": 32}
_LLAMA = {"activation": "fast-swiglu", "normalization": "rmsnorm", "position_embedding_type": "rope", "bias": False}
_GPT3 = {"activation": "gelu", "normalization": "layernorm1p", "position_embedding_type": "learned_absolute"}
_T5 = {
    "hidden_size": 512,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 8,
    "kv_channels": 64,
    "activation": "geglu",
    "normalization": "rmsnorm",
    "bias": False,
    "normalize_attention_scores": False,
    "position_embedding_type": "relative",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, **_SMOLLM, **_LLAMA},
    "llama-1.7b": {**_COMMON, **_LARGE, **_LLAMA},
    "gpt3": {**_COMMON, **_SMOLLM, "num_query_groups": None, **_GPT3, "bias": True},
    "t5": {**_COMMON, **_T5},
}
ROWS = ("unrelated", "one", "shared")
"""Rows of 46 unrelated samples, of one, and of samples that share prefixes."""


def samples(kind: str, rows: str, count: int = 46, length: int = 180, answer: int = 20) -> list[Any]:
    """Return samples of random tokens."""
    generator = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [generator.randrange(3, 40000) for _ in range(number)]

    if kind == "t5":
        return [T5Sample(tokens(length), tokens(answer), {}, "") for _ in range(1 if rows == "one" else count)]
    if rows == "one":
        return [GPTSample(tokens(length + 1), length - answer, {}, "")]
    texts = [tokens(length - 30) for _ in range(count)]
    if rows == "shared":
        texts = [texts[number - number % 5] for number in range(count)]
    return [GPTSample(text + tokens(31), length + 1 - answer, {}, "") for text in texts]


def choices(kind: str) -> list[Any]:
    """Return records with answer choices."""
    found = samples(kind, "unrelated", count=4, length=40, answer=4)
    tokens, owners = [5, 6, 7, 8, 9, 10, 11, 12, 13], [0, 0, 0, 1, 1, 2, 2, 2, 2]
    if kind == "t5":
        return [
            T5Choices(
                each.input_ids, [1, *tokens[5:]], {}, "", num_shared=1, choice_ids=tokens, choice_owners=owners, right=1
            )
            for each in found
        ]
    return [
        GPTChoices(
            *([*each.input_ids, *tokens[5:]], len(each.input_ids), {}, ""),
            num_shared=len(each.input_ids),
            choice_ids=tokens,
            choice_owners=owners,
            unlearnt=[0, 0, 0],
            right=1,
        )
        for each in found
    ]


def batch_of(found: list[Any]) -> GlobalBatch:
    """Return one micro-batch of all samples, in main memory."""
    is_t5 = isinstance(found[0], T5Sample)
    pack = t5_packing.pack if is_t5 else gpt_packing.pack
    return Collate(Layout.one_after_the_other(len(found)), not is_t5, pack=pack, keep_groups=True)(found)


@dataclass
class MetaModel:
    """A frozen model with adapters on the meta device."""

    kind: str
    """A key of KINDS."""
    method: str
    """The adapter method."""
    layers: int
    """The number of layers; for a T5, of each stack."""
    flex: bool = True
    """Whether attention is one kernel for a row."""
    fused: bool = True
    """Whether operators are fused."""

    def __post_init__(self) -> None:
        parallel.initialize(ONE_RANK)
        family: Any = T5Shape if self.kind == "t5" else GPTShape
        config = KINDS[self.kind] | {"num_layers": self.layers}
        self.shape = family.from_config(config, vocab_size=VOCABULARY, source="test")
        build: Any = build_t5 if self.kind == "t5" else build_gpt
        with META:
            self.model = build(self.shape, dtype=torch.bfloat16)
        self.adapters = AdapterSet(self.model, self.shape, model_section(self.method))
        self.adapters.train()
        set_fused(self.model, self.fused)
        for module in self.model.modules():
            if isinstance(module, PackedAttention):
                module.uses_flex = self.flex

    def decoding(self, found: list[Any], new_tokens: int) -> Any:
        """Return a generation of these prompts."""
        family: Any = T5Decoding if self.kind == "t5" else GPTDecoding
        return family(self.model, META, found, new_tokens)

    def train(self, batch: GlobalBatch, *, backward: bool = True, loss: TrainingLoss | None = None) -> Recorder:
        """Record forward, backward and clipping, or with `backward` False a validation."""
        with recorded() as recorder:
            forward_backward(self.model, batch.to(META), backward=backward, loss=loss or TrainingLoss())
            if backward:
                self.adapters.clip_gradients(1.0)
        return recorder
