# SPDX-License-Identifier: Apache-2.0
"""Names of GPT weights: ours (Megatron-core's local modules), NeMo's mcore layout, NeMo's legacy layout.

Sources: NeMo 1.23 with `mcore_gpt: True` and Transformer Engine layers, as its Hugging Face importers write, and NeMo
1.20 MegatronGPTModel (`model.language_model...`).
"""

from __future__ import annotations

import re

from nemo_launcher.checkpoint.gates import UP_PROJECTION

# (pattern of a stored name, our name); the first match applies. Both namings of the mcore layout are read: Transformer
# Engine's and the local one.
_MCORE: tuple[tuple[str, str], ...] = (
    (r"(decoder\.layers\.\d+\.)self_attention\.linear_qkv\.layer_norm_(weight|bias)", r"\1input_layernorm.\2"),
    (r"(decoder\.layers\.\d+\.)mlp\.linear_fc1\.layer_norm_(weight|bias)", r"\1pre_mlp_layernorm.\2"),
    (r"((?:embedding|decoder|output_layer)\..*)", r"\1"),
)
_LEGACY_LAYER = r"language_model\.encoder\.(layers\.\d+\.)"
_LEGACY: tuple[tuple[str, str], ...] = (
    (r"language_model\.embedding\.(.*)", r"embedding.\1"),
    (_LEGACY_LAYER + r"(input_layernorm\..*)", r"decoder.\1\2"),
    (_LEGACY_LAYER + r"self_attention\.query_key_value\.(.*)", r"decoder.\1self_attention.linear_qkv.\2"),
    (_LEGACY_LAYER + r"self_attention\.dense\.(.*)", r"decoder.\1self_attention.linear_proj.\2"),
    (_LEGACY_LAYER + r"post_attention_layernorm\.(.*)", r"decoder.\1pre_mlp_layernorm.\2"),
    (_LEGACY_LAYER + r"mlp\.dense_h_to_4h\.(.*)", r"decoder.\1mlp.linear_fc1.\2"),
    (_LEGACY_LAYER + r"mlp\.dense_h_to_4h_2\.(.*)", rf"decoder.\1{UP_PROJECTION}\2"),
    (_LEGACY_LAYER + r"mlp\.dense_4h_to_h\.(.*)", r"decoder.\1mlp.linear_fc2.\2"),
    (r"language_model\.encoder\.final_layernorm\.(.*)", r"decoder.final_layernorm.\1"),
    (r"language_model\.output_layer\.(.*)", r"output_layer.\1"),
    (r"word_embeddings\.(.*)", r"output_layer.\1"),  # the last pipeline stage's copy in a tied model
)
# Buffers and metadata that a frozen model does not need.
_IGNORED = re.compile(r".*(_extra_state|rotary_pos_emb\.inv_freq)$")


def from_stored_name(name: str) -> str | None:
    """Return our name of a stored weight, or None if it is not needed. Raises KeyError for an unknown name."""
    if _IGNORED.match(name):
        return None
    stem = _stem(name)
    for pattern, ours in _LEGACY + _MCORE:
        match = re.fullmatch(pattern, stem)
        if match:
            return match.expand(ours)
    raise KeyError(name)


def to_mcore_name(name: str) -> str:
    """Return the name of one of our weights in NeMo 1.23's mcore layout (Transformer Engine layers)."""
    name = re.sub(r"(decoder\.layers\.\d+\.)input_layernorm\.", r"\1self_attention.linear_qkv.layer_norm_", name)
    name = re.sub(r"(decoder\.layers\.\d+\.)pre_mlp_layernorm\.", r"\1mlp.linear_fc1.layer_norm_", name)
    return f"model.{name}"


def _stem(name: str) -> str:
    # megatron_amp_O2 adds a wrapper: `model.module.`
    return name.removeprefix("model.").removeprefix("module.")
