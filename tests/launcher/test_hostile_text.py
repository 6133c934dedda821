# SPDX-License-Identifier: Apache-2.0
"""Texts in a configuration cannot add a line to a script, a Slurm header or a file name."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters.base import Settings
from nemo_launcher.clusters.registry import any_section
from nemo_launcher.clusters.script import refuse_control_characters
from nemo_launcher.config.constraints import Lines
from nemo_launcher.config.fields import Hidden
from nemo_launcher.config.keys import all_keys, type_at
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections import TopLevel
from nemo_launcher.errors import UserError
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
SECTIONS: dict[str, Any] = {"": TopLevel, "cluster": any_section()} | STAGES
HOSTILE = "a\ntouch /tmp/pwned"
# multi-line text; setup lines are lines of the script
SEVERAL_LINES = (
    "prompt_template",
    "notes",
    "cluster.setup",
)


def text_keys() -> Iterator[tuple[str, Any]]:
    """Return every key with a text type, and that type."""
    for prefix, schema in SECTIONS.items():
        for key in all_keys(schema, f"{prefix}." if prefix else ""):
            kind = type_at(schema, key.split(".")[1 if prefix else 0 :])
            if _takes(kind, "a"):
                yield key, kind


def _takes(kind: Any, text: str) -> bool:
    return any(not check(value, kind, "") for value in (text, [text], {"a": text}))


def test_every_text_key_refuses_control_characters() -> None:
    keys = dict(text_keys())
    assert len(keys) > 80
    taking = [key for key, kind in keys.items() if any(_takes(kind, f"a{c}b") for c in "\n\r\0\x1b\x85\u2028\udc80")]
    assert [key for key in taking if not key.endswith(SEVERAL_LINES)] == []


def test_text_of_several_lines_holds_no_other_control_character() -> None:
    kinds = [kind for key, kind in text_keys() if key.endswith(SEVERAL_LINES)]
    assert len(kinds) >= 3
    assert not any(_takes(kind, f"a{c}b") for kind in kinds for c in "\0\x1b\x07\udc80")
    assert all(_takes(kind, "a\n\tb") for kind in kinds)


@pytest.mark.parametrize(
    "key",
    [
        "cluster.comment",
        "cluster.account",
        "cluster.additional_parameters.licenses",
        "base_results_dir",
        "adapter_learning.run.results_dir",
        "adapter_learning.run.name",
        "env_vars.MINE",
        "container",
        "adapter_learning.model.nemo_path",
    ],
)
def test_a_line_break_is_told_at_launch(launch: Launch, workplace: Workplace, key: str) -> None:
    result = launch(*workplace.arguments, f'{key}="{HOSTILE}"', "debug=True", "cluster_type=bcm")
    assert result.status == 2
    assert f"{key} (command line): has a line break" in result.err
    assert "touch" not in result.err
    assert not workplace.results.exists()


def test_a_name_is_no_longer_than_file_systems_take(launch: Launch, workplace: Workplace) -> None:
    for key in ("adapter_learning.run.results_dir", "base_results_dir", "data_dir"):
        result = launch(*workplace.arguments, f"{key}=/tmp/{'x' * 300}", "debug=True")
        assert result.status == 2
        assert "more than 255 bytes" in result.err


def settings(**changes: Any) -> Settings:
    """Settings as passed to the launchers."""
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Settings))
    return Settings(**values | {"cluster": {}, "env_vars": {}, "data_dir": Path("/data")} | changes)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Settings)])
def test_the_script_writer_asserts_it_again(field: str) -> None:
    for value in (HOSTILE, [HOSTILE], {"a": HOSTILE}, {HOSTILE: "a"}, Path(f"/x{HOSTILE}")):
        with pytest.raises(UserError, match="line break"):
            refuse_control_characters(settings(**{field: value}))
    refuse_control_characters(settings(cluster={"setup": ["module load a\nmodule load b"]}))


def test_marks_are_what_the_table_of_exceptions_says() -> None:
    """The types declare exactly these exceptions."""

    def parts(kind: Any) -> list[Any]:
        inner = [part for argument in typing.get_args(kind) for part in parts(argument)]
        return [*getattr(kind, "__metadata__", ()), *inner]

    lines = [key for key, kind in text_keys() if any(isinstance(part, Lines) for part in parts(kind))]
    assert {key.rsplit(".", 1)[-1] for key in lines} <= {"prompt_template", "notes", "setup", "task_templates"}
    hidden = [key for key, kind in text_keys() if any(isinstance(part, Hidden) for part in parts(kind))]
    assert {"env_vars", "cluster.additional_parameters", "cluster.setup", "wandb_api_bcp_secret_key"} <= set(hidden)
