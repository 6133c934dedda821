# SPDX-License-Identifier: Apache-2.0
"""A rank's peak memory in training, from the sizes of the base model and of the rows that it computes together.

On a GPU this is what torch allocates (torch.cuda.max_memory_allocated), without the CUDA context of about 0.5 GiB; on a
CPU it is the resident memory of the process. A job reports the same figure (runtime.memory.peak_memory_gib).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemo_launcher.adapters.settings import OPTIMIZER_BYTES, Settings
from nemo_launcher.checkpoint.outline import StackSizes
from nemo_launcher.launcher.activations import Device, cross_elements, layer_elements, working_elements
from nemo_launcher.megatron.sizes import LOGIT_BYTES, tokens_with_logits

GRADIENT_BYTES = 8
"""Bytes per adapter parameter: its gradient, and that of the micro-batch that is added to it (training.step)."""
PROCESS_BYTES = 440 << 20
"""Resident bytes on a CPU of the interpreter with torch, Megatron-core and Lightning, before the base is loaded."""
LIBRARY_BYTES = 30 << 20
"""Bytes on a CPU of the compiled products and buffers that torch and oneDNN cache (runtime.memory)."""
UNUSED_SHARE = 0.3
"""Of the activations' memory on a CPU, what the C library has freed but can neither use nor return."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a complete base model."""

    layers: float
    """The parameters of all layers."""
    others: float
    """The parameters of embeddings and head."""
    rows: float
    """The rows of the head: the number of logits of a token."""
    stored_bytes: float
    """The size of the weight files."""

    @property
    def total(self) -> float:
        """The parameters of the model."""
        return self.layers + self.others


@dataclass(frozen=True, slots=True)
class Rows:
    """What a rank computes at the same time."""

    tokens: Mapping[str, float]
    """The number of tokens by stack."""
    logits: float
    """The number of tokens with logits."""
    longest: float
    """The number of tokens of the longest sample."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model."""

    stacks: Mapping[str, StackSizes]
    """The sizes of the decoder, and of T5's encoder."""
    parameters: Parameters
    """Its parameters."""
    is_rotary: bool
    """Whether queries and keys have rotary positions."""
    relative_biases: int
    """The number of biases by relative position that are in memory together: one, or in UMT5 one for each layer."""


def peak_bytes(base: Base, settings: Settings, trained: int, rows: Rows, device: Device) -> float:
    """Return a rank's peak memory in bytes. trained: the number of parameters that the method trains."""
    weights = base.parameters.total * device.width / device.ranks
    added = trained * (OPTIMIZER_BYTES + GRADIENT_BYTES) / device.ranks
    logits = base.parameters.rows * min(rows.logits, tokens_with_logits(base.parameters.rows)) * LOGIT_BYTES
    kept, working = activation_bytes(base, settings, rows, device), _working_bytes(base, rows, device)
    if device.is_gpu:
        return weights + added + kept + max(logits, working)
    # Weights are copied from the file, which is mapped (families.base), unless the dtype is the same.
    loading = weights + (0.0 if _is_mapped(base.parameters, device) else base.parameters.stored_bytes)
    activations = max(kept + logits, kept + working, (kept + working) / (1 - UNUSED_SHARE))
    return PROCESS_BYTES + max(loading, _cpu_weights(base, settings, device) + added + LIBRARY_BYTES + activations)


def activation_bytes(base: Base, settings: Settings, rows: Rows, device: Device) -> float:
    """Return the bytes that the forward pass keeps for the backward pass."""
    elements = 0.0
    for name, count in backward_layers(base, settings).items():
        sizes, tokens = base.stacks[name], rows.tokens[name]
        layers = min(count, sizes.num_layers / device.pipeline)
        attention, feed_forward = layer_elements(settings, sizes, device, is_rotary=base.is_rotary)
        kept = tokens * (attention + sizes.experts_per_token * feed_forward)
        if name == "decoder" and "encoder" in base.stacks:
            kept += cross_elements(settings, sizes, device, tokens, rows.tokens["encoder"])
        again = device.recomputed_layers(layers)
        elements += (layers - again) * kept + again * tokens * sizes.hidden_size + (kept if again else 0.0)
        if "encoder" not in base.stacks and layers and not again:  # the last layer (megatron.last_layer)
            elements -= max(0.0, tokens - rows.logits) * feed_forward
    if base.relative_biases:  # each and a copy of it (families.t5.positions)
        heads = max(sizes.num_attention_heads for sizes in base.stacks.values()) / device.tensor
        elements += 2 * base.relative_biases * heads * rows.longest**2
    return elements * device.width


def backward_layers(base: Base, settings: Settings) -> dict[str, int]:
    """Return how many layers of each stack the backward pass visits: those from the first with adapters on.

    Gradients of adapters in a T5's encoder pass through all layers of its decoder.
    """
    counts: dict[str, int] = {}
    for name in (name for name in ("encoder", "decoder") if name in base.stacks):
        count = base.stacks[name].num_layers
        chosen = settings.chosen_layers(name, count)
        counts[name] = count if any(counts.values()) else count - min(chosen, default=count)
    return counts


def _working_bytes(base: Base, rows: Rows, device: Device) -> float:
    return device.width * max(rows.tokens[name] * working_elements(s, device) for name, s in base.stacks.items())


def _is_mapped(parameters: Parameters, device: Device) -> bool:
    """Return whether the weights are stored in the dtype of the training, and so are used where the file is mapped."""
    return abs(parameters.stored_bytes / max(1.0, parameters.total) - device.width) < 1


def _cpu_weights(base: Base, settings: Settings, device: Device) -> float:
    """Return the bytes of the weights on a CPU.

    Those of the layers are packed, for both directions where the backward pass goes (megatron.packed_weight); the pages
    of a mapped file that they come from are released (files.mapped).
    """
    parameters = base.parameters
    if not device.packs:
        return parameters.total * device.width / device.ranks
    visited = sum(backward_layers(base, settings).values()) / sum(s.num_layers for s in base.stacks.values())
    return ((1 + visited) * parameters.layers + parameters.others) * device.width / device.ranks


@cache
def packs_bf16() -> bool:
    """Return whether torch packs bf16 weights on this machine's CPU (torch.ops.mkldnn._is_mkldnn_bf16_supported)."""
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = set(cpu.split("processor", 2)[1].split()) if "processor" in cpu else set()
    return {"avx512bw", "avx512dq", "avx512vl"} <= flags or "bf16" in flags
