# SPDX-License-Identifier: Apache-2.0
"""A table of typical mistakes: each is refused before anything runs, with its key and an accepted fix."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.launcher.suggestions import GROUPS, suggested, type_of
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
TABLE = Path(__file__).with_name("mistakes.txt")
GPT_FILE = "gpt3/squad.yaml"
RECORD = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}


def rows() -> list[tuple[str, str, str]]:
    """Return arguments, place and fix of each row."""
    lines = [line for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    parts = [line.replace("@", "adapter_learning.").split(" | ") for line in lines]
    return [(a.strip(), b.strip(), c.strip()) for a, b, c in parts]


def arguments_of(text: str) -> list[str]:
    words = text.replace("LONG", "/" + "x" * 300).split(" ")
    return [word.replace("~", " ") if word[:1] != "~" else word for word in words]


@pytest.fixture
def ready(workplace: Workplace) -> Workplace:
    """A workplace with an accepted launch and 100 training records."""
    train, validation = workplace.root / "train.jsonl", workplace.root / "validation.jsonl"
    train.write_text((json.dumps(RECORD) + "\n") * 100)
    validation.write_text((json.dumps(RECORD) + "\n") * 10)
    data = [("train_ds", train), ("validation_ds", validation)]
    workplace.arguments += [f"adapter_learning.model.data.{key}=[{path}]" for key, path in data]
    workplace.arguments += ["adapter_learning.model.optim.sched.warmup_steps=0", "debug=True"]
    return workplace


def test_the_table_is_long_and_the_workplace_right(launch: Launch, ready: Workplace) -> None:
    assert len(set(rows())) >= 150
    result = launch(*ready.arguments)
    assert (result.status, result.err) == (0, "")


def test_the_ending_of_a_chosen_file_may_be_there(launch: Launch, ready: Workplace) -> None:
    plain, with_ending = (launch(*ready.arguments, f"adapter_learning={name}") for name in ("gpt3/squad", GPT_FILE))
    assert (plain.status, with_ending.status, plain.out) == (0, 0, with_ending.out)
    wrong = launch(*ready.arguments, f"adapter_learning={GPT_FILE}", "adapter_learning.model.global_batch_size=1024")
    assert "squad.yaml.yaml" not in wrong.err


@pytest.mark.parametrize(("text", "where", "hint"), rows(), ids=[row[0][:60] for row in rows()])
def test_a_mistake_is_led_out_of(launch: Launch, ready: Workplace, text: str, where: str, hint: str) -> None:
    wrong = arguments_of(text)
    result = launch(*ready.arguments, *wrong)
    assert result.status == 2, result.err
    assert where in result.err
    assert hint in result.err
    assert "Traceback" not in result.err
    assert not ready.results.exists()
    told = mistakes_in(result.err)
    for mistake, fix in told:
        for way in ways_out(mistake, fix, wrong):
            rest = [word for word in wrong if key_of(word) not in {key_of(item) for item in way}]
            rest = [word for word in rest if not mistake.startswith((word, key_of(word)))]
            again = launch(*ready.arguments, *rest, *way)
            assert again.status in (0, 2)
            assert mistake not in [other for other, _ in mistakes_in(again.err)], (way, again.err)
            assert not any(f"{key_of(item)}: unknown key" in again.err for item in way)


def mistakes_in(err: str) -> list[tuple[str, str]]:
    """Return each mistake with its fix."""
    blocks = [block.partition("\n    -> ") for block in err.split("\n\n")[1:]]
    return [(what.strip(), fix.strip()) for what, _, fix in blocks]


def ways_out(mistake: str, fix: str, wrong: list[str]) -> list[list[str]]:
    """Return the command lines that a fix suggests: each override, or the suggested name instead of the wrong one."""
    ways = [[override] for override in suggested(fix)[:2]]
    meant = re.match(r"did you mean '([^']+)'\?", fix)
    if meant is None:
        return ways
    name = meant[1]
    for word in wrong:
        key, _, value = word.partition("=")
        if name in GROUPS or type_of(name) is not None:  # a key to replace the one that does not exist
            ways += [[f"{name}={value or 1}"]] if mistake.startswith(key_of(word)) else []
        elif key_of(word) == "stages":
            ways.append([f"stages=[{name}]"])
        elif value and not key.startswith("-"):
            ways.append([f"{key}={name}"])
    return ways


def key_of(word: str) -> str:
    return word.lstrip("+~-").partition("=")[0]
