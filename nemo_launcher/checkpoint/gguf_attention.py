# SPDX-License-Identifier: Apache-2.0
"""Windows and scales of attention in a GGUF file, as keys of config.json. Imports no torch.

Source of the values that a file lacks: llama.cpp, src/llama-model.cpp (load_hparams).
"""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.windows import SLIDING
from nemo_launcher.checkpoint.gguf_file import GGUFKeys
from nemo_launcher.errors import UserError

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_MOST_LAYERS = 4096
_FULL = "full_attention"
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""The number of layers by which llama.cpp recognizes the models of 27B, whose scale is not the size of a head."""


def gemma2_attention(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the window, which every other layer has, and the scale."""
    window = keys.get(WINDOW, 4096)
    return {"sliding_window": window, "layer_types": _pattern(_layers(keys), 2), **_scale(keys, head_dim)}


def gemma3_attention(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the window, the layers that have it, and the scale. Raises UserError for an unusable pattern."""
    layers, window, pattern = _layers(keys), keys.get(WINDOW), keys.get(PATTERN, 6)
    if type(pattern) is int and pattern > 0:
        kinds = _pattern(layers, pattern)
    elif isinstance(pattern, list) and len(pattern) == layers and all(type(entry) is bool for entry in pattern):
        kinds = [SLIDING if entry else _FULL for entry in pattern]
    else:
        what = f"{str(pattern)[:60]!r} is neither a number above 0 nor true or false for each of {layers} layers"
        raise UserError(keys.wrong(PATTERN, what))
    if window in (None, 0):  # transformers wants a number
        window, kinds = keys.get("context_length"), [_FULL] * layers
    return {"sliding_window": window, "layer_types": kinds, **_scale(keys, head_dim)}


def phi3_attention(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the window of all layers; 0 stands for none."""
    return {"sliding_window": keys.get(WINDOW) or None}


def _layers(keys: GGUFKeys) -> int:
    """Return the number of layers, or 0 for one that is refused elsewhere."""
    layers = keys.get("block_count")
    return layers if type(layers) is int and 0 < layers <= _MOST_LAYERS else 0


def _pattern(layers: int, every: int) -> list[str]:
    """Return the kinds of layers of which each `every`th is without a window."""
    return [SLIDING if (number + 1) % every else _FULL for number in range(layers)]


def _scale(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the number whose root divides attention scores. A file does not state it."""
    hidden, heads = keys.get("embedding_length"), keys.get("attention.head_count")
    if _layers(keys) == _LAYERS_OF_27B[keys.kind] and type(hidden) is int and type(heads) is int and heads > 0:
        return {"query_pre_attn_scalar": hidden // heads}
    return {"query_pre_attn_scalar": head_dim}
