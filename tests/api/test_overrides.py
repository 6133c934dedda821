# SPDX-License-Identifier: Apache-2.0
"""Mappings as overrides: Hydra reads back the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nemo_launcher.api.overrides import overrides_of
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit

VALUES: dict[str, Any] = {
    "none": None,
    "yes": True,
    "number": 5,
    "small": 1e-5,
    "word": "llama/squad",
    "as_number": "32",
    "as_null": "null",
    "empty": "",
    "spaces": "text: {text} title: {title}",
    "quotes": 'it\'s "so"',
    "backslashes": "C:\\new\\'quoted\\'",
    "last_backslash": "folder\\",
    "lists": [["a b", 1], []],
    "templates": [{"taskname": "headlines", "answer_only_loss": True, "prompt_template": "a, b: {c}"}],
    "unicode": "über[x]=(1)",
}


@pytest.mark.parametrize("form", [dict, OmegaConf.create])
def test_hydra_reads_back_the_same_values(form: Any) -> None:
    found = OverridesParser.create().parse_overrides(overrides_of(form({"stage": {"model": VALUES}})))
    assert {override.key_or_group.split(".")[2]: override.value() for override in found} == VALUES
    assert all(override.is_force_add() for override in found)


def test_top_level_keys_choose_files_and_paths_are_texts() -> None:
    assert overrides_of({"adapter_learning": "llama/squad"}) == ["adapter_learning=llama/squad"]
    assert overrides_of({"run": {"results_dir": Path("/tmp/a b")}}) == ["++run.results_dir='/tmp/a b'"]
    assert overrides_of(["a=1", "+b=2"]) == ["a=1", "+b=2"]


def test_what_is_no_setting_is_refused() -> None:
    with pytest.raises(UserError, match=r"pass a list: train\(\['a=1'\]\)"):
        overrides_of("a=1")
    with pytest.raises(UserError) as error:
        overrides_of({"a": {"b": object(), "c": [1, {1, 2}]}})
    assert [problem.where for problem in error.value.problems] == ["a.b", "a.c[1]"]
