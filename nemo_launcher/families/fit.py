# SPDX-License-Identifier: Apache-2.0
"""Comparison of the configuration's sizes with the stored weights, before a model is allocated."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.errors import Problem
from nemo_launcher.families.layer_shape import LayerShape, Shape
from nemo_launcher.megatron.variation import PLAIN

_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")
_EXPERT = re.compile(r"decoder\.layers\.\d+\.mlp\.experts\.local_experts\.(\d+)\.")
_FIRST_EXPERT = "experts.local_experts.0."


def size_mismatches(
    weights: StoredWeights, stacks: Mapping[str, LayerShape], shape: Shape, source: str
) -> list[Problem]:
    """Return the weights whose shapes, and the stacks whose numbers of layers, differ from the configuration.

    stacks: the shape of each stack (families.layer_shape.LayerShape) by name; shape: of the complete model. One layer
    of each stack is compared, which is enough to bound the memory of the model by the size of the file.
    """
    expected: dict[str, tuple[int, ...]] = {}
    problems = []
    for stack, sizes in stacks.items():
        found = {int(match[2]) for match in map(_LAYER.match, weights.names) if match and match[1] == stack}
        if sizes.num_layers > len(found):
            what = f"is {sizes.num_layers:,}, but the weights have {len(found):,} layers"
            problems.append(Problem(f"{source}: num_layers ({stack})", what, "copy or convert the archive again"))
        expected |= _layer(f"{stack}.layers.{min(found, default=0)}.", sizes)
    expected |= _tables(stacks, shape)
    variation = getattr(shape, "variation", PLAIN)
    if variation.experts is not None:
        stored = {int(match[1]) for match in map(_EXPERT.match, weights.names) if match}
        if stored != set(range(variation.experts)):
            what = f"is {variation.experts:,}, but the weights have {len(stored):,} experts"
            problems.append(Problem(f"{source}: num_moe_experts", what, "copy or convert the archive again"))
    for name, wanted in expected.items():
        if name in weights.names and weights.shape(name) != wanted:
            what = f"has shape {weights.shape(name)}, but the configuration implies {wanted}"
            problems.append(Problem(f"{source}: {name}", what, "copy or convert the archive again"))
    return problems


def _layer(prefix: str, sizes: LayerShape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's large weights, [out, in]."""
    heads = sizes.num_attention_heads * sizes.kv_channels
    groups = sizes.num_query_groups * sizes.kv_channels
    hidden, ffn = sizes.hidden_size, sizes.ffn_hidden_size
    return {
        f"{prefix}self_attention.linear_qkv.weight": (heads + 2 * groups, hidden),
        f"{prefix}self_attention.linear_proj.weight": (hidden, heads),
        **{
            f"{prefix}mlp.{owner}{name}.weight": size
            for owner in ("", _FIRST_EXPERT)
            for name, size in {
                "linear_fc1": (2 * ffn if sizes.gated else ffn, hidden),
                "linear_fc2": (hidden, ffn),
            }.items()
        },
    }


def _tables(stacks: Mapping[str, LayerShape], shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of embeddings and position tables."""
    hidden, prefix = shape.hidden_size, "encoder_" if "encoder" in stacks else ""
    tables: dict[str, tuple[int, ...]] = {
        f"{prefix}embedding.word_embeddings.weight": (shape.vocab_size, hidden),
        f"{prefix}embedding.position_embeddings.weight": (shape.max_position_embeddings, hidden),
    }
    for stack, sizes in stacks.items():
        buckets = getattr(sizes, "relative_attention_num_buckets", None)
        if buckets is not None:
            table = (buckets, sizes.num_attention_heads)
            tables[f"{stack}_relative_positions.relative_attention_bias.weight"] = table
    return tables
