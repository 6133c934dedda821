# SPDX-License-Identifier: Apache-2.0
"""The names of files of hidden states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_launcher.data.hidden_file import TableShape
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.training.hidden_cache import cache_key

pytestmark = pytest.mark.unit


def test_a_file_is_named_by_all_that_the_states_depend_on(tiny_base: Path) -> None:
    base, shape = load_base(tiny_base), TableShape(5, 32, torch.float32)

    def key(of: Base = base, layer: int = 2, table: TableShape = shape, digest: str = "a") -> str:
        return cache_key(of, "decoder", layer, table, digest)

    keys = [
        key(),
        key(layer=3),
        key(table=replace(shape, rows=6)),
        key(table=replace(shape, dtype=torch.bfloat16)),
        key(digest="b"),
        key(replace(base, device=torch.device("cuda"))),
        key(replace(base, settings=base.settings | {"rotary.base": 5.0})),
    ]
    assert key() == keys[0]
    embedding = base.model.embedding.word_embeddings.weight
    embedding.data[7, 0] += 1e-3
    assert len({*keys, key()}) == len(keys) + 1
