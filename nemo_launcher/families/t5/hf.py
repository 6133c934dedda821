# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face's T5 (v1.0, v1.1, Flan), mT5 and UMT5 to NeMo checkpoints: configuration and weights.

Source of the configuration keys: NeMo 1.20, examples/nlp/language_modeling/conf/megatron_t5_config.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.families.t5 import layouts as t5_layouts
from nemo_launcher.families.t5.shape import RELATIVE, RELATIVE_PER_LAYER

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TARGET = "nemo.collections.nlp.models.language_modeling.megatron_t5_model.MegatronT5Model"

_UMT5 = "umt5"
"""The model_type with a table of relative positions in each layer, which NeMo's T5 does not have."""
_BIAS = "relative_attention_bias.weight"
# feed_forward_proj -> NeMo's keys. Both `openai_gelu` and Hugging Face's "gelu_new" are the tanh approximation.
_ACTIVATIONS: dict[str, dict[str, object]] = {
    "relu": {"activation": "relu", "openai_gelu": False},
    "gated-relu": {"activation": "reglu", "openai_gelu": False},
    "gated-gelu": {"activation": "geglu", "openai_gelu": True},
    "gated-silu": {"activation": "swiglu", "openai_gelu": False},
}


def nemo_config(config: PretrainedConfig, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the `model_config.yaml` keys for a Hugging Face T5Config and its weights.

    The model does not limit the length of prompts and answers, since positions are relative; prompts get the length of
    the pretraining, 512.
    """
    length = int(getattr(config, "n_positions", None) or 512)
    return {
        "seq_length": length,
        "max_position_embeddings": length,
        "share_token_embeddings": True,
        "share_decoder_tokens_head_embeddings": _head_is_tied(weights),
        "tokens_head_bias": False,
        "make_vocab_size_divisible_by": 128,
        "embedding_dropout": 0.0,
        "data": {"dataset_type": "t5"},
        "encoder": _section(config, config.num_layers),
        "decoder": _section(config, config.num_decoder_layers),
    }


def _section(config: PretrainedConfig, num_layers: int) -> dict[str, object]:
    return {
        "arch": "transformer",
        "num_layers": num_layers,
        "hidden_size": config.d_model,
        "ffn_hidden_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "kv_channels": config.d_kv,
        "position_embedding_type": RELATIVE_PER_LAYER if config.model_type == _UMT5 else RELATIVE,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "relative_position_bias_self_attention_only": True,
        "normalize_attention_scores": False,
        "apply_query_key_layer_scaling": False,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.layer_norm_epsilon,
        "bias": False,
        "bias_activation_fusion": False,
        "bias_dropout_add_fusion": False,
        "masked_softmax_fusion": False,
        "transformer_block_type": "pre_ln",
        "megatron_legacy": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "init_method_std": 0.02,
        **_ACTIVATIONS[config.feed_forward_proj],
    }


def tokenizer_section(vocab: Iterable[str]) -> dict[str, object]:
    """Return the additional keys of NeMo's `tokenizer` section for T5."""
    return {"num_sentinel_tokens": sum(token.startswith("<extra_id_") for token in vocab)}


def to_stored(weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """Return some of our weights under the names that NeMo's MegatronT5Model stores."""
    gated = config.feed_forward_proj.startswith("gated-")
    shared = t5_layouts.ENCODER_TOKENS in weights
    return t5_layouts.to_stored(weights, separate_gates=gated, share_token_embeddings=shared)


def convert_weights(weights: Mapping[str, Tensor], config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under our names in Megatron-core's layout.

    Queries, keys and values are interleaved by head: [heads, 3, head_dim, hidden]; keys and values of cross-attention
    are [heads, 2, head_dim, hidden]. The original T5 multiplies the decoder's output by d_model ** -0.5 before its tied
    head. NeMo does not, so the factor is folded into the weights of the decoder's final norm.
    """
    yield t5_layouts.ENCODER_TOKENS, weights["shared.weight"]
    yield "encoder.final_layernorm.weight", weights["encoder.final_layer_norm.weight"]
    final_norm = weights["decoder.final_layer_norm.weight"]
    if config.scale_decoder_outputs:
        final_norm = (final_norm.float() * config.d_model**-0.5).to(final_norm.dtype)
    yield "decoder.final_layernorm.weight", final_norm
    if not _head_is_tied(weights):
        yield "output_layer.weight", weights["lm_head.weight"]
    for stack, num_layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        if config.model_type != _UMT5:
            table = f"{stack}.block.0.layer.0.SelfAttention.{_BIAS}"
            yield f"{stack}_relative_positions.{_BIAS}", weights[table]
        for number in range(num_layers):
            block, layer = f"{stack}.block.{number}.layer.", f"{stack}.layers.{number}."
            for ours, weight in _layer(weights, block, config, stack):
                yield layer + ours, weight


def _layer(
    weights: Mapping[str, Tensor], block: str, config: PretrainedConfig, stack: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of one layer; Hugging Face numbers the sub-layers of a block."""
    attention, cross = f"{block}0.SelfAttention.", f"{block}1.EncDecAttention."
    feed_forward = f"{block}{2 if stack == 'decoder' else 1}."
    yield "input_layernorm.weight", weights[f"{block}0.layer_norm.weight"]
    if config.model_type == _UMT5:
        yield f"self_attention.relative_positions.{_BIAS}", weights[f"{attention}{_BIAS}"]
    yield "self_attention.linear_qkv.weight", _by_head(weights, attention, "qkv", config.num_heads)
    yield "self_attention.linear_proj.weight", weights[f"{attention}o.weight"]
    if stack == "decoder":
        yield "pre_cross_attn_layernorm.weight", weights[f"{block}1.layer_norm.weight"]
        yield "cross_attention.linear_q.weight", weights[f"{cross}q.weight"]
        yield "cross_attention.linear_kv.weight", _by_head(weights, cross, "kv", config.num_heads)
        yield "cross_attention.linear_proj.weight", weights[f"{cross}o.weight"]
    yield "pre_mlp_layernorm.weight", weights[f"{feed_forward}layer_norm.weight"]
    inputs = ("wi_0", "wi_1") if config.feed_forward_proj.startswith("gated-") else ("wi",)
    parts = [weights[f"{feed_forward}DenseReluDense.{name}.weight"] for name in inputs]
    yield "mlp.linear_fc1.weight", torch.cat(parts)
    yield "mlp.linear_fc2.weight", weights[f"{feed_forward}DenseReluDense.wo.weight"]


def _by_head(weights: Mapping[str, Tensor], attention: str, names: str, heads: int) -> Tensor:
    parts = [weights[f"{attention}{name}.weight"] for name in names]
    hidden = parts[0].size(1)
    return torch.cat([part.view(heads, -1, hidden) for part in parts], dim=1).reshape(-1, hidden)


def _head_is_tied(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the head is the token embedding, which transformers' configuration no longer says."""
    return torch.equal(weights["lm_head.weight"], weights["shared.weight"])
