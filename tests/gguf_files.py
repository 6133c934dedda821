# SPDX-License-Identifier: Apache-2.0
"""Tiny random GGUF files of a Llama, like those of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from transformers.convert_slow_tokenizer import bytes_to_unicode

HEADS, GROUPS, SIZE, HIDDEN, FFN, LAYERS = 4, 2, 16, 64, 96, 2
SPECIAL = ["<s>", "</s>", "<pad>"]
ALPHABET = list(bytes_to_unicode().values())
MERGES = ["1 2", "Ġ t", "2 3", "12 3"]
TOKENS = [*SPECIAL, *ALPHABET, "12", "Ġt", "23", "123", "<|endoftext|>"]


def tensors(seed: int = 0, rows: int = len(TOKENS)) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights under llama.cpp's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (rows, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (rows, HIDDEN),
    }
    for number in range(LAYERS):
        block = f"blk.{number}."
        shapes |= {
            f"{block}attn_norm.weight": (HIDDEN,),
            f"{block}attn_q.weight": (HEADS * SIZE, HIDDEN),
            f"{block}attn_k.weight": (GROUPS * SIZE, HIDDEN),
            f"{block}attn_v.weight": (GROUPS * SIZE, HIDDEN),
            f"{block}attn_output.weight": (HIDDEN, HEADS * SIZE),
            f"{block}ffn_norm.weight": (HIDDEN,),
            f"{block}ffn_gate.weight": (FFN, HIDDEN),
            f"{block}ffn_up.weight": (FFN, HIDDEN),
            f"{block}ffn_down.weight": (HIDDEN, FFN),
        }
    generator = np.random.default_rng(seed)
    return {name: generator.normal(0.5, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    architecture: str = "llama",
    tokens: list[str] = TOKENS,
) -> Path:
    """Write a file; metadata: keys to add or replace (None: omit)."""
    writer = GGUFWriter(str(path), architecture)
    values: dict[str, Any] = {
        f"{architecture}.context_length": 256,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.feed_forward_length": FFN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": GROUPS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{architecture}.rope.dimension_count": SIZE,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
    }
    for key, value in (values | dict(metadata or {})).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, weight in (tensors(rows=len(tokens)) if weights is None else weights).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
