# SPDX-License-Identifier: Apache-2.0
"""The formula of a rank's memory against figures that were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.adapters.settings import trainable_parameters
from nemo_launcher.checkpoint.outline import StackSizes
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.memory import Base, Parameters, Rows, packs_bf16, peak_bytes

pytestmark = pytest.mark.unit
GIB = 2**30
GPU = Device(is_gpu=True, width=2)
SMOLLM2_135M = StackSizes(30, 576, 1536, 9, 3, 64, True)
SMOLLM2_1700M = StackSizes(24, 2048, 8192, 32, 32, 64, True)
IA3: dict[str, Any] = {}
ADAPTER = {"adapter_tuning": {"type": "parallel_adapter", "adapter_dim": 16}}
LORA = {"adapter_tuning": {"type": "lora", "adapter_dim": 16, "target_modules": ["all"]}}


def llama(sizes: StackSizes, rows: int, *, tied: bool = True, width: int = 2) -> Base:
    """Return a Llama without biases, stored in `width` bytes per parameter."""
    heads, keys = sizes.num_attention_heads * sizes.kv_channels, sizes.num_query_groups * sizes.kv_channels
    layer = sizes.hidden_size * (2 * heads + 2 * keys + 3 * sizes.ffn_hidden_size + 2)
    layers, tables = sizes.num_layers * layer, rows * sizes.hidden_size * (1 if tied else 2)
    parameters = Parameters(layers, tables, rows, (layers + tables) * width)
    return Base({"decoder": sizes}, parameters, is_rotary=True, relative_biases=0)


def peak_gib(base: Base, method: dict[str, Any], tokens: float, logits: float, device: Device) -> float:
    """Return the formula's peak memory in GiB for one row."""
    settings = settings_of(method)
    rows = Rows({"decoder": tokens}, logits, tokens)
    return peak_bytes(base, settings, trainable_parameters(settings, base.stacks), rows, device) / GIB


@pytest.mark.parametrize(
    ("sizes", "tokens", "logits", "method", "recomputes", "measured"),
    [
        (SMOLLM2_1700M, 8 * 1024, 8 * 16, IA3, False, 15.7),
        (SMOLLM2_1700M, 8 * 1024, 8 * 16, ADAPTER, False, 18.4),
        (SMOLLM2_1700M, 8 * 1024, 8 * 16, LORA, False, 20.9),
        (SMOLLM2_1700M, 8 * 1024, 8 * 16, IA3, True, 5.6),
        (SMOLLM2_1700M, 8 * 1024, 8 * 16, LORA, True, 5.8),
        (SMOLLM2_135M, 8597, 140 * 5, IA3, False, 3.8),
        (SMOLLM2_135M, 8597, 140 * 5, ADAPTER, False, 5.2),
        (SMOLLM2_135M, 8597, 140 * 5, LORA, False, 5.4),
    ],
)
def test_figures_of_a_gpu(
    sizes: StackSizes, tokens: int, logits: int, method: dict[str, Any], recomputes: bool, measured: float
) -> None:
    """One row in bf16 on an H100 (benchmarks/README.md, "On a GPU"); the number of answer tokens is not recorded."""
    said = peak_gib(llama(sizes, 49152), method, tokens, logits, replace(GPU, recomputes=recomputes))
    assert measured / 1.25 < said < measured * 1.25


@pytest.mark.parametrize(
    ("sizes", "rows", "tied", "width", "tokens", "logits", "measured_mib"),
    [
        (StackSizes(2, 32, 48, 4, 2, 8, True), 444, True, 4, 441, 13, 458),
        (StackSizes(8, 512, 1408, 8, 4, 64, True), 8009, True, 4, 441, 13, 914),
        (StackSizes(8, 512, 1408, 8, 4, 64, True), 8009, True, 2, 1009, 48, 754),
        (StackSizes(8, 512, 1408, 8, 4, 64, True), 8009, True, 4, 3858, 19, 1934),
        (StackSizes(4, 256, 704, 8, 4, 32, True), 64009, True, 4, 757, 332, 880),
        (StackSizes(4, 256, 704, 8, 4, 32, True), 64009, True, 2, 757, 332, 788),
        (StackSizes(4, 256, 704, 8, 4, 32, True), 64009, False, 4, 757, 332, 937),
    ],
)
def test_figures_of_a_cpu(
    sizes: StackSizes, rows: int, tied: bool, width: int, tokens: int, logits: int, measured_mib: int
) -> None:
    """IA3 from an fp32 archive on an AMD EPYC with torch 2.13, 2026-11-26: the resident memory, one row at a time."""
    base = llama(sizes, rows, tied=tied, width=4)
    said = 1024 * peak_gib(base, IA3, tokens, logits, Device(is_gpu=False, width=width))
    assert measured_mib / 1.2 < said < measured_mib * 1.2
    process = 440
    assert (measured_mib - process) / 1.6 - 20 < said - process < (measured_mib - process) * 1.6 + 20


def test_weights_in_bf16_are_packed_where_torch_packs_them() -> None:
    assert packs_bf16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    base = llama(SMOLLM2_1700M, 49152)
    once, more = (peak_gib(base, IA3, 64, 1, Device(is_gpu=False, width=2, packs=packs)) for packs in (False, True))
    assert more - once == pytest.approx(base.parameters.layers * 2 / (1 << 30), rel=0.2)


def test_layers_below_the_adapters_keep_nothing() -> None:
    base, method = llama(SMOLLM2_1700M, 49152), {"ia3_tuning": {"layers": "12-23"}}
    weights = peak_gib(base, IA3, 0, 0, GPU)
    kept = peak_gib(base, IA3, 8192, 0, GPU) - weights
    assert peak_gib(base, method, 8192, 0, GPU) - weights == pytest.approx(kept / 2, rel=0.1)


def test_each_device_and_option_has_its_terms() -> None:
    base = llama(SMOLLM2_1700M, 49152)
    whole = peak_gib(base, IA3, 8192, 0, GPU)
    assert peak_gib(base, IA3, 8192, 2048, GPU) > whole  # logits exceed the working memory
    split = peak_gib(base, IA3, 8192, 0, replace(GPU, tensor=4))
    assert whole / 4 < split < whole / 2  # norms' inputs are on every rank
    staged = peak_gib(base, IA3, 8192, 0, replace(GPU, pipeline=2))
    assert whole / 2 < staged < whole / 1.5  # the working memory is that of one layer
    some = peak_gib(base, IA3, 8192, 0, replace(GPU, recomputes=True, recomputed=12))
    assert peak_gib(base, IA3, 8192, 0, replace(GPU, recomputes=True)) < some < whole
