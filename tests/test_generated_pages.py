# SPDX-License-Identifier: Apache-2.0
"""docs/keys.md and the tables of docs/sizes.md and docs/from-nemo-launcher.md: up to date, and complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.tools import keys, nvidia, sizes
from nemo_launcher.launcher.suggestions import SECTIONS, known_keys
from tests.documents import TEXTS
from tests.launcher import nvidia_files

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


def test_the_tables_of_nvidias_keys_are_up_to_date() -> None:
    page = TEXTS["docs/from-nemo-launcher.md"]
    assert nvidia.updated(page) == page, "run `make docs-reference`"


def leaves(section: object, prefix: str = "") -> set[str]:
    """Return the keys of NVIDIA's file; those of a list's first entry."""
    if isinstance(section, list) and section and isinstance(section[0], dict):
        section = section[0]
    if not isinstance(section, dict) or not section:
        return {prefix}
    return {key for name, value in section.items() for key in leaves(value, f"{prefix}.{name}" if prefix else name)}


def test_every_key_of_nvidias_files_has_a_row() -> None:
    found = {group.full(key) for group in nvidia.groups() for key in group.keys}
    files = [
        ("adapter_learning", nvidia_files.learning("adapter_learning", family)) for family in nvidia_files.FAMILIES
    ]
    files += [("adapter_learning", nvidia_files.learning("adapter_learning", "gpt3", first=True))]
    files += [("evaluation", nvidia_files.evaluation(*which)) for which in nvidia_files.EVALUATIONS]
    keys = {f"{stage}.{key}" for stage, content in files for key in leaves(content)}
    main_file = nvidia_files.main_file()
    elsewhere = {"defaults", "hydra", *(name for name in main_file if name.endswith("_config"))}
    keys |= {key for key in leaves(main_file) if key.split(".")[0] not in {*elsewhere, "env_vars"}}
    assert keys - found == set()
    assert len(keys) > 100


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr | better |", "neither same, nor better or gone with a reason"),
        ("lr | gone | elsewhere", "lr is gone, but that is not so in the schema"),
        ("unknown | same |", "unknown is same, but that is not so in the schema"),
        ("sched.monitor | same |", "in the code's own tables"),
    ],
)
def test_a_row_must_be_true(line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys.txt").write_text(f"## model.optim | adapter_learning.model.optim | squad.yaml\n{line}\n")
    monkeypatch.setattr(nvidia, "KEYS", tmp_path / "keys.txt")
    with pytest.raises(ValueError, match=words):
        nvidia.updated("")


def test_the_estimate_of_the_quickstart_has_its_trained_parameters() -> None:
    """README's figures are those of real jobs."""
    trained = {text for text in TEXTS["docs/sizes.md"].splitlines() if text.startswith("| SmolLM2-135M | 57,600 ")}
    assert len(trained) == 1
    assert "57,600 (0.04%)" in TEXTS["README.md"]
    assert "1,175,040" in TEXTS["README.md"]
    assert "1,175,040" in trained.pop()
