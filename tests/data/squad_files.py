# SPDX-License-Identifier: Apache-2.0
"""Source files of SQuAD, and what is prepared from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data import squad
from nemo_launcher.errors import UserError

SQUAD = squad.SquadBuilder()


def squad_content(*questions: tuple[str, list[str]], context: str = "Warsaw lies on the Vistula.") -> dict[str, Any]:
    entries = [
        {"id": f"q{index}", "question": text, "answers": [{"text": answer, "answer_start": 0} for answer in answers]}
        for index, (text, answers) in enumerate(questions)
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": entries}]}]}


TRAIN = squad_content(("Which city?", ["Warsaw"]), ("Unanswered?", []), ("Which river?", ["the Vistula", "Vistula"]))

DEV = squad_content(("Où?", ["sur la Vistule", "Vistule", "Vistule"]))


def write_sources(folder: Path, train: Any = TRAIN, dev: Any = DEV, names: tuple[str, str] = ("train", "dev")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (train, dev), strict=True):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepared(source: Path, output: Path, download: bool = False) -> dict[str, int]:
    return SQUAD.prepare(source, output, download=download, report=lambda line: None)


def prepare_error(source: Path, output: Path, download: bool = False) -> str:
    with pytest.raises(UserError) as error:
        prepared(source, output, download)
    return str(error.value)
