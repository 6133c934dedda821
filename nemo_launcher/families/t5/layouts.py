# SPDX-License-Identifier: Apache-2.0
"""Names of T5 weights: ours (families.t5.model, Megatron-core's modules) and those of NeMo 1.20's MegatronT5Model.

Source of the stored names: the state dict of MegatronT5Model (NeMo 1.20 to 1.23), `enc_dec_model...`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from nemo_launcher.checkpoint.gates import UP_PROJECTION, split_gates
from nemo_launcher.files.values import Section

_PREFIX = "enc_dec_model."
# NeMo's name -> ours, for modules outside the stacks, in all layers, and in the layers of one stack.
_MODEL = {
    "encoder_relative_position_embedding.relative_position_embedding.": (
        "encoder_relative_positions.relative_attention_bias."
    ),
    "decoder_relative_position_embedding.relative_position_embedding.": (
        "decoder_relative_positions.relative_attention_bias."
    ),
    "decoder_cross_attention_relative_position_embedding.relative_position_embedding.": (
        "cross_relative_positions.relative_attention_bias."
    ),
    "tokens_head.": "output_layer.",
}
_LAYER = {
    "self_attention.relative_position_embedding.": "self_attention.relative_positions.relative_attention_bias.",
    "self_attention.query_key_value.": "self_attention.linear_qkv.",
    "self_attention.dense.": "self_attention.linear_proj.",
    "inter_attention.query.": "cross_attention.linear_q.",
    "inter_attention.key_value.": "cross_attention.linear_kv.",
    "inter_attention.dense.": "cross_attention.linear_proj.",
    "mlp.dense_h_to_4h.": "mlp.linear_fc1.",
    "mlp.dense_h_to_4h_2.": UP_PROJECTION,
    "mlp.dense_4h_to_h.": "mlp.linear_fc2.",
    "input_layernorm.": "input_layernorm.",
}
_STACK_LAYER = {
    "encoder": {"post_attention_layernorm.": "pre_mlp_layernorm."},
    "decoder": {
        "post_attention_layernorm.": "pre_cross_attn_layernorm.",
        "post_inter_attention_layernorm.": "pre_mlp_layernorm.",
    },
}
_SAME = ("encoder_embedding.", "decoder_embedding.")
ENCODER_TOKENS = "encoder_embedding.word_embeddings.weight"
_DECODER_TOKENS = "decoder_embedding.word_embeddings.weight"


def renaming(config: Section) -> Callable[[str], str | None]:
    """Return `from_stored_name` for a checkpoint with this configuration.

    If encoder and decoder share the token embedding, NeMo stores it twice, and the decoder's copy is ignored.
    """
    shared = bool(config.get("share_token_embeddings", True))

    def rename(name: str) -> str | None:
        ours = from_stored_name(name)
        return None if shared and ours == _DECODER_TOKENS else ours

    return rename


def from_stored_name(name: str) -> str | None:
    """Return our name of a stored weight, or None if it is not needed. Raises KeyError for an unknown name."""
    if name.endswith("_extra_state"):
        return None
    ours = _ours(_stem(name))
    if ours is None:
        raise KeyError(name)
    return ours


def _ours(stem: str) -> str | None:
    if not stem.startswith(_PREFIX):
        return None
    stem = stem.removeprefix(_PREFIX)
    if stem.startswith(_SAME):
        return stem
    match = re.fullmatch(r"enc_dec_model\.(encoder|decoder)\.model\.(layers\.\d+\.|final_layernorm\.)(.*)", stem)
    if match is None:
        return _replaced(stem, _MODEL)
    stack, place, rest = match.groups()
    if place == "final_layernorm.":
        return f"{stack}.{place}{rest}"
    inner = _replaced(rest, _LAYER | _STACK_LAYER[stack])
    return None if inner is None else f"{stack}.{place}{inner}"


def to_stored(
    weights: Mapping[str, Tensor], *, separate_gates: bool, share_token_embeddings: bool
) -> dict[str, Tensor]:
    """Return our weights under the names that NeMo's MegatronT5Model stores.

    separate_gates: whether NeMo stores the gated activation as two matrices ("geglu", unlike "fast-geglu").
    """
    weights = split_gates(weights) if separate_gates else weights
    stored = {to_stored_name(name): weight for name, weight in weights.items()}
    if share_token_embeddings:
        stored[_PREFIX + _DECODER_TOKENS] = weights[ENCODER_TOKENS]
    return stored


def to_stored_name(name: str) -> str:
    """Return NeMo's name of one of our weights. Raises KeyError for an unknown name."""
    if name.startswith(_SAME):
        return _PREFIX + name
    match = re.fullmatch(r"(encoder|decoder)\.(layers\.\d+\.|final_layernorm\.)(.*)", name)
    if match is None:
        stored = _replaced(name, {ours: theirs for theirs, ours in _MODEL.items()})
    else:
        stack, place, rest = match.groups()
        table = {ours: theirs for theirs, ours in (_LAYER | _STACK_LAYER[stack]).items()}
        inner = rest if place == "final_layernorm." else _replaced(rest, table)
        stored = None if inner is None else f"enc_dec_model.{stack}.model.{place}{inner}"
    if stored is None:
        raise KeyError(name)
    return _PREFIX + stored


def _replaced(name: str, table: Mapping[str, str]) -> str | None:
    for start, replacement in table.items():
        if name.startswith(start):
            return replacement + name.removeprefix(start)
    return None


def _stem(name: str) -> str:
    # megatron_amp_O2 adds a wrapper: `enc_dec_model.module.`
    return name.replace("enc_dec_model.module.", _PREFIX, 1)
