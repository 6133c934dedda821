# SPDX-License-Identifier: Apache-2.0
"""The sizes of a base model from its archive's outline, without reading its weights."""

from __future__ import annotations

from nemo_launcher.adapters.sites import FFN_IN, HEADS, QKV
from nemo_launcher.checkpoint.outline import Outline, StackSizes, stack_sections, stack_sizes
from nemo_launcher.config.families import is_t5
from nemo_launcher.files.values import Section, whole
from nemo_launcher.launcher.memory import Base, Parameters
from nemo_launcher.megatron.sizes import head_problems, size_problems

_POSITIONS = "position_embedding_type"


def stacks_of(outline: Outline | None) -> dict[str, StackSizes] | None:
    """Return the sizes of a base model's stacks; None if they are unknown or invalid."""
    sections = stack_sections(outline.config) if outline is not None else {}
    if any(size_problems(section, "") or head_problems(section, "") for section in sections.values()):
        return None
    return {name: stack_sizes(section) for name, section in sections.items()} or None


def base_of(outline: Outline, stacks: dict[str, StackSizes]) -> Base | None:
    """Return a base model's sizes; None if the size of its weight files is unknown or too small for its layers."""
    sections, stored = stack_sections(outline.config), outline.weight_bytes
    has_cross = len(stacks) > 1
    layers = sum(
        sizes.num_layers * _layer_parameters(sizes, sections[name], has_cross=has_cross and name == "decoder")
        for name, sizes in stacks.items()
    )
    width = _stored_width(outline.config, layers, stored or 0)
    if width is None:
        return None
    others = (stored or 0) / width - layers
    positions = sum(_position_parameters(sizes, sections[name]) for name, sizes in stacks.items())
    rows = (others - positions) / (stacks["decoder"].hidden_size * _num_tables(outline.config))
    kinds = [section.get(_POSITIONS) for section in sections.values()]
    return Base(
        stacks,
        Parameters(layers, max(0.0, others), max(0.0, rows), stored or 0),
        is_rotary="rope" in kinds,
        relative_biases=sum(
            sizes.num_layers for name, sizes in stacks.items() if sections[name].get(_POSITIONS) == "relative_per_layer"
        )
        or int("relative" in kinds),
    )


def _stored_width(config: Section, layers: int, stored: int) -> int | None:
    """Return the bytes of a stored parameter: those of the archive's precision, if so many fit its size."""
    named = 4 if str(config.get("precision", 32)).startswith("32") else 2
    return next((width for width in dict.fromkeys((named, 4, 2)) if 0 < layers * width <= stored), None)


def _layer_parameters(sizes: StackSizes, section: Section, *, has_cross: bool) -> int:
    """Return the parameters of one layer, with its norms and biases."""
    hidden, heads, qkv, ffn = sizes.hidden_size, HEADS.of(sizes), QKV.of(sizes), FFN_IN.of(sizes)
    count = hidden * (qkv + heads + sizes.experts * (ffn + sizes.ffn_hidden_size))
    count += hidden * sizes.experts if sizes.experts > 1 else 0  # the router
    biases, norms = qkv + ffn + 2 * hidden, 2
    if has_cross:
        count += hidden * (qkv + heads)
        biases, norms = biases + qkv + hidden, 3
    if section.get("bias", True):
        count += biases
    elif section.get("qkv_bias"):
        count += qkv
    return count + norms * hidden * (1 if section.get("normalization") == "rmsnorm" else 2)


def _position_parameters(sizes: StackSizes, section: Section) -> int:
    learned = section.get(_POSITIONS) in (None, "learned_absolute")
    return sizes.hidden_size * (whole(section, "max_position_embeddings") or 0) if learned else 0


def _num_tables(config: Section) -> int:
    """Return the number of matrices with a row per token: embeddings, and a head that is not one of them."""
    if is_t5(config):
        shared = (config.get("share_token_embeddings", True), config.get("share_decoder_tokens_head_embeddings", True))
        return 1 + sum(not value for value in shared)
    return 1 if config.get("share_embeddings_and_output_weights", True) else 2
