# SPDX-License-Identifier: Apache-2.0
"""Helpers for conversion tests: modified copies of a folder, stored weights, and refusals."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError

Weights = dict[str, Tensor]


def changed(folder: Path, target: Path, change: Callable[[Weights], Weights], **config: Any) -> Path:
    """Return a copy of a folder with modified tensors and configuration."""
    shutil.copytree(folder, target)
    weights = change(load_file(target / "model.safetensors"))
    save_file(weights, target / "model.safetensors")
    own = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(own | config))
    return target


def stored_weights(path: Path) -> Weights:
    with Archive(path) as archive:
        return {name: weight.clone() for name, weight in read_tensors(archive, WEIGHTS_NAME).items()}


def assert_refused(source: Path, target: Path, words: Sequence[str]) -> None:
    """Check that the conversion's error contains all `words`, and that no files are left beside the target."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(UserError) as error:
        convert(source, target)
    assert all(word in str(error.value) for word in words)
    assert sorted(target.parent.iterdir()) == before


def sentencepiece_model(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """Train a small model with byte fallback; `options` are passed to the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Anna lives near the river.", "Where does Boris live? 2023"] * 20),
        model_writer=model,
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
