# SPDX-License-Identifier: Apache-2.0
"""The layout of Hugging Face in which a T5 can be written."""

from __future__ import annotations

import torch.nn.functional as F

from nemo_launcher.families.hf_layout import HuggingFaceLayout
from nemo_launcher.families.hf_table import Module, StackTable, Table
from nemo_launcher.families.t5.shape import StackShape, T5Shape


def _table(shape: T5Shape) -> Table:
    return Table(
        outside=(
            Module("encoder_embedding.word_embeddings", ("shared",)),
            Module("output_layer", ("lm_head",)),
            Module("encoder.final_layernorm", ("encoder.final_layer_norm",)),
            Module("decoder.final_layernorm", ("decoder.final_layer_norm",)),
            *(
                Module(
                    f"{stack}_relative_positions.relative_attention_bias",
                    (f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",),
                )
                for stack in ("encoder", "decoder")
            ),
        ),
        stacks=tuple(_stack(name, getattr(shape, name)) for name in ("encoder", "decoder")),
    )


def _stack(name: str, shape: StackShape) -> StackTable:
    """Return the table of a stack; Hugging Face numbers the sub-layers of a block."""
    last, inputs = 1 if name == "encoder" else 2, ("wi_0", "wi_1") if shape.gated else ("wi",)
    modules = [
        Module("input_layernorm", ("0.layer_norm",)),
        Module("self_attention.linear_qkv", tuple(f"0.SelfAttention.{letter}" for letter in "qkv"), heads="qkv"),
        Module("self_attention.linear_proj", ("0.SelfAttention.o",)),
        Module("pre_mlp_layernorm", (f"{last}.layer_norm",)),
        Module("mlp.linear_fc1", tuple(f"{last}.DenseReluDense.{part}" for part in inputs)),
        Module("mlp.linear_fc2", (f"{last}.DenseReluDense.wo",)),
    ]
    if name == "decoder":
        modules += [
            Module("pre_cross_attn_layernorm", ("1.layer_norm",)),
            Module("cross_attention.linear_q", ("1.EncDecAttention.q",)),
            Module("cross_attention.linear_kv", ("1.EncDecAttention.k", "1.EncDecAttention.v"), heads="kv"),
            Module("cross_attention.linear_proj", ("1.EncDecAttention.o",)),
        ]
    return StackTable(name, f"{name}.block.{{}}.layer.", tuple(modules))


def _configuration(shape: T5Shape) -> dict[str, object]:
    """Return the keys of a T5Config.

    `tie_word_embeddings` says whether the decoder's output is scaled, which NeMo never does; whether the head is the
    embedding follows from the weights.
    """
    encoder = shape.encoder
    return {
        "vocab_size": shape.vocab_size,
        "d_model": encoder.hidden_size,
        "d_kv": encoder.kv_channels,
        "d_ff": encoder.ffn_hidden_size,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": shape.decoder.num_layers,
        "num_heads": encoder.num_attention_heads,
        "relative_attention_num_buckets": encoder.relative_attention_num_buckets,
        "relative_attention_max_distance": encoder.relative_attention_max_distance,
        "layer_norm_epsilon": encoder.layernorm_epsilon,
        "feed_forward_proj": _feed_forward(encoder),
        "n_positions": shape.max_position_embeddings,
        "dropout_rate": 0.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
    }


def _feed_forward(shape: StackShape) -> str:
    if not shape.gated:
        return "relu"
    if shape.activation_function is F.relu:
        return "gated-relu"
    return "gated-silu" if shape.activation_function is F.silu else "gated-gelu"


LAYOUTS = (
    HuggingFaceLayout(
        kind="t5",
        architecture="T5ForConditionalGeneration",
        task="SEQ_2_SEQ_LM",
        table=_table,
        configuration=_configuration,
        copies={"output_layer.weight": "encoder_embedding.word_embeddings.weight"},
    ),
)
"""Those of a T5."""
