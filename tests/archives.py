# SPDX-License-Identifier: Apache-2.0
"""Archives for tests: with any members, or with everything the launcher reads from a base except weights."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_launcher.checkpoint.archive_writer import write_archive

GPT = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "ffn_hidden_size": 256,
    "tokenizer": {"library": "sentencepiece", "model": "nemo:tokenizer.model"},
}
ADAPTER = {"language_model_path": "/base.nemo", "adapter_tuning": {"adapter_dim": 16}}


def write_base(path: Path, config: Mapping[str, Any] = GPT, *, without: str = "") -> Path:
    """Write a base with this configuration; `without`: the name of a member to omit."""
    members = {"model_weights.ckpt": b"weights", "tokenizer.model": b"tokenizer"}
    write_archive(path, config, {name: content for name, content in members.items() if name != without})
    return path


def write_folder_base(path: Path, **tokenizer: Any) -> Path:
    """Write a base with a Hugging Face tokenizer; `tokenizer`: keys of its tokenizer_config.json."""
    config = GPT | {"tokenizer": {"library": "huggingface", "type": "nemo:tokenizer"}}
    members = {"model_weights.ckpt": b"weights", "tokenizer/tokenizer_config.json": json.dumps(tokenizer).encode()}
    write_archive(path, config, members)
    return path


def write_adapter(path: Path) -> Path:
    """Write what a launcher takes for an adapter."""
    return write_base(path, {"language_model_path": "/base.nemo", "adapter_tuning": {}})


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write a tar with these members; `mode`: as in tarfile.open."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
