# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md refers to existing commands and files, and the drivers' parts work."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.reliability.mutants import Json, JsonLines, Yaml, damaged, hostile_values
from tests.reliability.schema_keys import text_keys

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
SECURITY = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")


def test_every_command_and_path_of_the_document_exists() -> None:
    drivers = set(re.findall(r"python -m tests\.reliability\.(\w+)", SECURITY))
    assert {"kills", "crash_points", "mutations", "hostile_names", "full_disk"} == drivers
    assert [name for name in drivers if not (REPOSITORY / f"tests/reliability/{name}.py").exists()] == []
    assert [name for name in re.findall(r"`(tests/[\w/.]+)`", SECURITY) if not (REPOSITORY / name).exists()] == []
    assert "(SECURITY.md)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", range(30))
def test_harmless_mutants_hold_the_same(seed: int, tmp_path: Path) -> None:
    import json

    import yaml

    values = hostile_values(tmp_path / "canary")
    tree = {"a": [1, 0.5, None, "x\u00e9"], "b": {"c": True, "d": "1e-05"}}
    content = json.dumps(tree).encode()
    draw = random.Random(seed)
    assert json.loads(Json(values).harmless(draw, content)) == tree
    lines = JsonLines(values).harmless(draw, content + b"\n" + content).splitlines()
    assert [json.loads(line) for line in lines if line.strip()] == [tree, tree]
    assert yaml.safe_load(Yaml(values, tmp_path / "canary").harmless(draw, yaml.safe_dump(tree).encode())) == tree
    assert damaged(draw, content) != content


def test_every_section_has_text_keys() -> None:
    names = {key.name.partition(".")[0] for key in text_keys()}
    assert {"cluster", "env_vars", "adapter_learning", "ia3_learning", "evaluation", "conversion_hf2nemo"} <= names
