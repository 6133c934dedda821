# SPDX-License-Identifier: Apache-2.0
"""GPT checkpoints with random weights in NeMo's layout, and the same model in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.checkpoint.archive_writer import write_archive
from tests.engine import save_tokenizer

State = dict[str, Tensor]
CONFIG: dict[str, Any] = {
    "encoder_seq_length": 64,
    "max_position_embeddings": 64,
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-5,
    "bias_activation_fusion": False,
    "tokenizer": {"library": "huggingface", "type": "nemo:tokenizer", "use_fast": True},
}


@cache
def tokenizer_files() -> tuple[int, dict[str, bytes]]:
    """Return the number of tokens of a small tokenizer, and its files as archive members."""
    with TemporaryDirectory() as folder:
        size = save_tokenizer(Path(folder))
        return size, {f"tokenizer/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


def random_weights(config: Mapping[str, Any], seed: int = 0) -> State:
    """Return a GPT's weights under the names of NeMo's legacy layout, with separate gates and up-projections."""
    hidden, ffn, rows = config["hidden_size"], config["ffn_hidden_size"], tokenizer_files()[0] + 3
    heads, groups, size = attention_sizes(config)
    linear = {
        "self_attention.query_key_value": ((heads + 2 * groups) * size, hidden, "qkv_bias"),
        "self_attention.dense": (hidden, heads * size, "bias"),
        "mlp.dense_h_to_4h": (ffn, hidden, "bias"),
        "mlp.dense_4h_to_h": (hidden, ffn, "bias"),
    }
    if config["activation"].endswith("glu"):
        linear["mlp.dense_h_to_4h_2"] = (ffn, hidden, "bias")
    shapes: dict[str, tuple[int, ...]] = {"language_model.embedding.word_embeddings.weight": (rows, hidden)}
    norms = ["language_model.encoder.final_layernorm"]
    for number in range(config["num_layers"]):
        layer = f"language_model.encoder.layers.{number}."
        norms += [f"{layer}input_layernorm", f"{layer}post_attention_layernorm"]
        for name, (outputs, inputs, bias) in linear.items():
            shapes[f"{layer}{name}.weight"] = (outputs, inputs)
            if config.get(bias, config.get("bias", True)):
                shapes[f"{layer}{name}.bias"] = (outputs,)
    shapes |= {f"{norm}.weight": (hidden,) for norm in norms}
    if config["normalization"] != "rmsnorm":
        shapes |= {f"{norm}.bias": (hidden,) for norm in norms}
    if config["position_embedding_type"] == "learned_absolute":
        shapes["language_model.embedding.position_embeddings.weight"] = (config["max_position_embeddings"], hidden)
    if not config["share_embeddings_and_output_weights"]:
        shapes["language_model.output_layer.weight"] = (rows, hidden)
    generator = torch.Generator().manual_seed(seed)
    return {f"model.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def attention_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the numbers of heads and of key-value groups, and the size of a head."""
    heads = config["num_attention_heads"]
    groups = 1 if config.get("attention_type") == "multiquery" else config.get("num_query_groups") or heads
    return heads, groups, config.get("kv_channels") or config["hidden_size"] // heads


_MCORE_NAMES = (
    ("language_model.embedding.", "embedding."),
    ("language_model.output_layer.", "output_layer."),
    ("language_model.encoder.", "decoder."),
    ("self_attention.query_key_value.", "self_attention.linear_qkv."),
    ("self_attention.dense.", "self_attention.linear_proj."),
    ("mlp.dense_h_to_4h.", "mlp.linear_fc1."),
    ("mlp.dense_4h_to_h.", "mlp.linear_fc2."),
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_"),
    (".post_attention_layernorm.", ".mlp.linear_fc1.layer_norm_"),
)


def in_mcore_layout(weights: State) -> State:
    """Return weights of the legacy layout as NeMo's mcore models store them: gate and up-projection joined."""
    stored = {}
    for name, weight in joined_gates(weights).items():
        for legacy, mcore in _MCORE_NAMES:
            name = name.replace(legacy, mcore)
        stored[name] = weight
    return stored


def joined_gates(weights: State) -> State:
    """Return weights as NeMo stores them for "fast" gated activations."""
    ups = {name: weight for name, weight in weights.items() if ".dense_h_to_4h_2." in name}
    pairs = {name.replace("_2.", "."): up for name, up in ups.items()}
    whole = {name: torch.cat((weights[name], up)) for name, up in pairs.items()}
    return {name: whole.get(name, weight) for name, weight in weights.items() if name not in ups}


def write_gpt(path: Path, config: Mapping[str, Any], files: Mapping[str, State]) -> Path:
    """Write a base checkpoint with weight files (`model_weights.ckpt`, or one per rank); return `path`."""
    members: dict[str, Any] = dict(tokenizer_files()[1])
    members |= {name: _writer(weights) for name, weights in files.items()}
    write_archive(path, config, members)
    return path


def _writer(weights: State) -> Callable[[Any], None]:
    return lambda stream: torch.save({name: weight.clone() for name, weight in weights.items()}, stream)


# --- the model in plain torch ------------------------------------------------------------------------------------


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "geglu": F.gelu,
    "relu": torch.relu,
    "reglu": torch.relu,
    "squared-relu": lambda x: torch.relu(x) ** 2,
    "swiglu": F.silu,
}


def plain_logits(config: Mapping[str, Any], weights: State, ids: Tensor) -> Tensor:
    """Return the logits of one sequence, [s] -> [s, vocabulary]; weights: from `random_weights`."""
    model = {name.removeprefix("model.language_model."): weight for name, weight in weights.items()}
    x = model["embedding.word_embeddings.weight"][ids]
    if config["position_embedding_type"] == "learned_absolute":
        x = x + model["embedding.position_embeddings.weight"][: len(ids)]
    for number in range(config["num_layers"]):
        start = f"encoder.layers.{number}."
        layer = {name.removeprefix(start): weight for name, weight in model.items() if name.startswith(start)}
        x = x + _attention(config, layer, _norm(config, layer, "input_layernorm", x))
        x = x + _feed_forward(config, layer, _norm(config, layer, "post_attention_layernorm", x))
    x = _norm(config, model, "encoder.final_layernorm", x)
    tied = config["share_embeddings_and_output_weights"]
    return x @ model["embedding.word_embeddings.weight" if tied else "output_layer.weight"].T


def _norm(config: Mapping[str, Any], weights: State, name: str, x: Tensor) -> Tensor:
    epsilon, weight = config["layernorm_epsilon"], weights[f"{name}.weight"]
    if config["normalization"] == "rmsnorm":
        return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight
    if config["normalization"] == "layernorm1p" or config.get("layernorm_zero_centered_gamma"):
        weight = weight + 1
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight + weights[f"{name}.bias"]


def _linear(weights: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _attention(config: Mapping[str, Any], layer: State, x: Tensor) -> Tensor:
    heads, groups, size = attention_sizes(config)
    each, length = heads // groups, len(x)
    qkv = _linear(layer, "self_attention.query_key_value", x).view(length, groups, each + 2, size)
    query = _rotated(config, qkv[:, :, :each].reshape(length, heads, size))
    key, value = (qkv[:, :, place].repeat_interleave(each, dim=1) for place in (each, each + 1))
    scores = torch.einsum("qhd,khd->hqk", query, _rotated(config, key)) / size**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    return _linear(layer, "self_attention.dense", mixed.reshape(length, heads * size))


def _rotated(config: Mapping[str, Any], x: Tensor) -> Tensor:
    if config["position_embedding_type"] != "rope":
        return x
    width = int(x.size(-1) * config.get("rotary_percentage", 1.0))
    frequencies = config.get("rotary_base", 10000) ** (-torch.arange(0, width, 2) / width)
    if config.get("scale_positional_embedding"):
        frequencies = torch.stack([_scaled(config, frequency) for frequency in frequencies])
    positions = torch.arange(len(x)) / (config.get("seq_len_interpolation_factor") or 1)
    angles = (positions[:, None] * frequencies)[:, None, :]
    first, second, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.cat((*turned, rest), dim=-1)


def _scaled(config: Mapping[str, Any], frequency: Tensor) -> Tensor:
    """Return Llama 3.1's scaled frequencies: low, high and intermediate ones."""
    factor, low, high = config.get("scale_factor", 8), config.get("low_freq_factor", 1), config["high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    if wavelength > config["old_context_len"] / low:
        return frequency / factor
    if wavelength < config["old_context_len"] / high:
        return frequency
    share = (config["old_context_len"] / wavelength - low) / (high - low)
    return (1 - share) * frequency / factor + share * frequency


def _feed_forward(config: Mapping[str, Any], layer: State, x: Tensor) -> Tensor:
    function = ACTIVATIONS[config["activation"].removeprefix("fast-")]
    hidden = function(_linear(layer, "mlp.dense_h_to_4h", x))
    if config["activation"].endswith("glu"):
        hidden = hidden * _linear(layer, "mlp.dense_h_to_4h_2", x)
    return _linear(layer, "mlp.dense_4h_to_h", hidden)
