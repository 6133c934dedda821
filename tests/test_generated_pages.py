# SPDX-License-Identifier: Apache-2.0
"""docs/keys.md and the tables of docs/sizes.md: up to date, and complete."""

from __future__ import annotations

import re

import pytest

from docs.tools import keys, sizes
from nemo_launcher.launcher.suggestions import SECTIONS, known_keys
from tests.documents import TEXTS

pytestmark = pytest.mark.unit
PAGE = TEXTS["docs/keys.md"]
IA3 = "ia3_learning.model.ia3_tuning"  # the table under the heading of its stage


def test_the_page_is_up_to_date() -> None:
    assert keys.page() == PAGE, "run `make docs-reference`"


def rows() -> set[str]:
    """Return the full key of each row."""
    found = set()
    for chapter in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        stage = chapter.split("`")[1] if chapter.startswith("`") else ""
        prefix = f"{stage}." if stage in SECTIONS and stage != "cluster" else ""
        found |= {f"{prefix}{key}" for key in re.findall(r"^\| `([\w.]+)` \|", chapter, flags=re.MULTILINE)}
    return {key if key.partition(".")[0] in SECTIONS or key in known_keys() else f"cluster.{key}" for key in found}


def test_every_key_has_a_row() -> None:
    whole = {key for key in known_keys() if not is_section(key)} - {"stages", "cluster_type", IA3}
    shared = {key for key in whole if key.startswith("ia3_learning.") and ".ia3_tuning" not in key}
    assert {key.replace("ia3_learning", "adapter_learning") for key in shared} <= rows()
    assert whole - shared <= rows()
    assert len(whole - shared) > 250


def is_section(key: str) -> bool:
    """Return whether a key has a table of its own in place of a row."""
    return key in SECTIONS or f"\n### `{key.replace('ia3_learning', 'adapter_learning')}`" in PAGE


def test_a_row_has_the_type_the_defaults_and_the_meaning() -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `model.tensor_model_parallel_size` |")]
    assert [cell.strip() for cell in row.strip("|").split(" | ")] == [
        "`model.tensor_model_parallel_size`",
        "a whole number, at least 1",
        "`1`",
        "gpt3, t5: `1`; llama: `4`",
        "Number of ranks that share each layer.",
    ]
    assert (
        '| `model.data.validation_ds` | a list ([...]), each entry text, 1 or more entries | - | `["${data_dir}/'
        in PAGE
    )


def test_the_tables_of_sizes_are_up_to_date() -> None:
    page = TEXTS["docs/sizes.md"]
    assert page.count("\n| ") > 15
    assert sizes.updated(page) == page, "run `make docs-reference`"


def test_the_estimate_of_the_quickstart_has_its_trained_parameters() -> None:
    """README's figures are those of real jobs."""
    trained = {text for text in TEXTS["docs/sizes.md"].splitlines() if text.startswith("| SmolLM2-135M | 57,600 ")}
    assert len(trained) == 1
    assert "57,600 (0.04%)" in TEXTS["README.md"]
    assert "1,175,040" in TEXTS["README.md"]
    assert "1,175,040" in trained.pop()
