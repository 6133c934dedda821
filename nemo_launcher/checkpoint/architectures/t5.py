# SPDX-License-Identifier: Apache-2.0
"""T5 (v1.0, v1.1, Flan), mT5 and UMT5: the keys of their configurations; families.t5.hf converts them."""

from __future__ import annotations

from dataclasses import replace

from nemo_launcher.checkpoint.architectures.architecture import Architecture
from nemo_launcher.files.values import Section

ACTIVATIONS = ("relu", "gated-relu", "gated-gelu", "gated-silu")


def _problems(config: Section) -> list[str]:
    """Return the unsupported settings of the feed-forward layers.

    transformers derives dense_act_fn and is_gated_act from feed_forward_proj, unless config.json has them too.
    """
    kind = config.get("feed_forward_proj", ACTIVATIONS[0])
    if kind not in ACTIVATIONS or not isinstance(kind, str):
        return [f"feed_forward_proj {_short(kind)}"]
    gate, _, name = kind.rpartition("-")
    derived = {"is_gated_act": gate == "gated", "dense_act_fn": "gelu_new" if kind == "gated-gelu" else name}
    return [
        f"{key} {_short(config[key])} beside feed_forward_proj {kind!r}"
        for key, value in derived.items()
        if config.get(key, value) != value
    ]


def scales_output(config: Section) -> bool:
    """Return whether the decoder's output is multiplied by d_model ** -0.5, as in the original T5.

    transformers 4 does so if tie_word_embeddings is true, which transformers 5 writes into all files; of an mT5 it
    never does, of a T5 it says so by scale_decoder_outputs.
    """
    if config.get("model_type") == MT5.kind:
        return False
    return config.get("scale_decoder_outputs", config.get("tie_word_embeddings")) is not False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


T5 = Architecture(
    name="T5ForConditionalGeneration",
    kind="t5",
    family="t5",
    counts=("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size"),
    optional_counts=("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance"),
    numbers=("layer_norm_epsilon",),
    flags=("tie_word_embeddings", "scale_decoder_outputs"),
    others=(
        *("feed_forward_proj", "dense_act_fn", "is_gated_act", "n_positions", "max_position_embeddings"),
        *("dropout_rate", "classifier_dropout", "initializer_factor", "output_past"),
        *("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"),
    ),
    problems=_problems,
)
MT5 = replace(T5, name="MT5ForConditionalGeneration", kind="mt5", others=(*T5.others, "tokenizer_class"))
UMT5 = replace(
    MT5,
    name="UMT5ForConditionalGeneration",
    kind="umt5",
    flags=("tie_word_embeddings",),
    others=(*MT5.others, "scalable_attention"),
)
