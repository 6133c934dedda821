# SPDX-License-Identifier: Apache-2.0
"""Dropout masks depend on seeds that are the same in every release of Python."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from nemo_launcher.megatron.seeded_dropout import SeededDropout, dropout_seed, seed_from

pytestmark = pytest.mark.unit

PACKAGE = Path(__file__).resolve().parents[2] / "nemo_launcher"


@pytest.mark.parametrize(
    ("numbers", "seed"),
    [
        ((1234, 0, 0), 8370894536469058812),
        ((1234, 1, 0), 2943132104590700164),
        ((1234, 0, 1), 7458485535742058045),
        ((-1,), 1129168158855626867),
        ((2**70, 3), 8067312058621210994),
    ],
)
def test_seeds_are_stable(numbers: tuple[int, ...], seed: int) -> None:
    """A checkpoint saved today must draw the same masks in every later release."""
    assert seed_from(*numbers) == seed < 2**63


def test_every_number_and_the_order_count() -> None:
    assert len({seed_from(1, 2), seed_from(2, 1), seed_from(12), seed_from(1, 2, 0), seed_from(0, 1, 2)}) == 5


def test_masks_are_stable() -> None:
    """Those of torch 2.11 and later; torch 2.6 draws others from the same seed."""
    dropout = SeededDropout(0.5).train()
    dropout.number = 3
    with dropout_seed((seed_from(1234, 0, 0), 1)):
        kept = dropout(torch.ones(16))
    mask = "0001110111001111" if torch.__version__.startswith("2.6.") else "0010001001111001"
    assert kept.tolist() == [2.0 * int(bit) for bit in mask]


def test_nothing_is_seeded_by_pythons_hash() -> None:
    """The values of `hash` depend on the interpreter's release."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "hash"
    ]
    assert not found
