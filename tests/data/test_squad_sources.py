# SPDX-License-Identifier: Apache-2.0
"""The source files of SQuAD: broken ones are told, missing ones are downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data import squad_download
from tests.data.squad_files import SQUAD, prepare_error, prepared, rows_of, squad_content, write_sources
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def test_every_mistake_of_both_files_is_told_with_its_place(tmp_path: Path) -> None:
    train = squad_content(("Which city?", ["Warsaw"]))
    paragraph = train["data"][0]["paragraphs"][0]
    paragraph["qas"].append({"id": 3, "answers": [{"txt": "x"}]})
    del paragraph["context"]
    write_sources(tmp_path, train=train, dev="[]")
    message = prepare_error(tmp_path, tmp_path / "out")
    assert f"{tmp_path / 'train.json'}: data[0].paragraphs[0]: has no 'context'" in message
    assert "data[0].paragraphs[0].qas[1].id: is a number, not text" in message
    assert "data[0].paragraphs[0].qas[1]: has no 'question'" in message
    assert "data[0].paragraphs[0].qas[1].answers[0]: has no 'text'" in message
    assert f"{tmp_path / 'dev.json'}: is a list, not an object" in message
    assert not (tmp_path / "out").exists()


def test_broken_json_is_named_by_file_line_and_column(tmp_path: Path) -> None:
    write_sources(tmp_path, train='{"data": [\n  {"paragraphs": [}]}')
    assert f"{tmp_path / 'train.json'}:2:19: not JSON" in prepare_error(tmp_path, tmp_path / "out")


def test_a_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path, dev=squad_content(("Unanswered?", []), ("Blank?", [" "])))
    assert "holds no question with an answer" in prepare_error(tmp_path, tmp_path / "out")


def test_unanswerable_questions_are_counted_and_said(tmp_path: Path) -> None:
    train = squad_content(("Which city?", ["Warsaw"]), ("Impossible?", []), ("Blank?", [" "]))
    train["version"] = "v2.0"
    train["data"][0]["paragraphs"][0]["qas"][1] |= {"is_impossible": True, "plausible_answers": [{"text": "x"}]}
    write_sources(tmp_path, train=train)
    lines: list[str] = []
    SQUAD.prepare(tmp_path, tmp_path / "out", download=False, report=lines.append)
    assert "Omitted: 2 of 3 questions of train.json without an answer" in lines
    assert not any("dev.json without" in line for line in lines)


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ('{"data": [', "not JSON"),
        ('{"data": "\\ud800"}', "half of a surrogate pair"),
        ('{"data": %s}' % ("9" * 5000), "a number with 5,000 digits"),
        ('{"data": [], "data": []}', "the key 'data' occurs twice"),
        ('{"data": %s}' % ("[" * 200 + "]" * 200), "nested more than 50 levels"),
        ('{"data": NaN}', "NaN is not a JSON number"),
        ('{"question": "q"}\n{"question": "r"}', "not JSON: Extra data"),
        (b"\x1f\x8b\x08\x00", "is not UTF-8"),
        ({"rows": []}, "has no 'data' (a list)"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": {"id": 1}}]}]}, "qas: is an object, not a list"),
        ({"data": [7] * 100}, "data[0]: is a number, not an object"),
    ],
)
def test_a_broken_file_is_told_and_writes_nothing(tmp_path: Path, train: Any, what: str) -> None:
    write_sources(tmp_path)
    content = train if isinstance(train, bytes) else (train if isinstance(train, str) else json.dumps(train)).encode()
    (tmp_path / "train.json").write_bytes(content)
    message = prepare_error(tmp_path, tmp_path / "out")
    assert f"{tmp_path / 'train.json'}" in message
    assert what in message
    assert len(message.splitlines()) <= 10
    assert not (tmp_path / "out").exists()


def test_half_a_pair_is_told_instead_of_downloading_something_else(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "dev.json").unlink()
    message = prepare_error(tmp_path, tmp_path / "out", download=True)
    assert f"{tmp_path / 'train.json'}: dev.json is missing in the same folder" in message


def _publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a local folder as the published address."""
    write_sources(folder, names=("train-v1.1", "dev-v1.1"))
    monkeypatch.setattr(squad_download, "SOURCE_URL", folder.as_uri())
    for name in squad_download.OFFICIAL_SHA256:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(squad_download.OFFICIAL_SHA256, name, digest)


def test_missing_sources_are_downloaded_into_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path / "web", monkeypatch)
    output = tmp_path / "out"
    assert prepared(tmp_path / "data", output, download=True)["squad_train.jsonl"] == 2
    assert (output / "train-v1.1.json").read_bytes() == (tmp_path / "web" / "train-v1.1.json").read_bytes()


def test_an_interrupted_download_goes_on_with_the_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, output = tmp_path / "web", tmp_path / "out"
    _publish(web, monkeypatch)
    dev = (web / "dev-v1.1.json").read_bytes()
    (web / "dev-v1.1.json").unlink()
    prepare_error(tmp_path / "data", output, download=True)
    (web / "dev-v1.1.json").write_bytes(dev)
    (web / "train-v1.1.json").unlink()
    assert prepared(tmp_path / "data", output, download=True)["squad_val.jsonl"] == 1


def test_a_download_of_something_else_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path / "web", monkeypatch)
    (tmp_path / "web" / "train-v1.1.json").write_text("<html>Please log in</html>")
    message = prepare_error(tmp_path / "data", tmp_path / "out", download=True)
    assert "wrong SHA-256" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_offline_the_message_names_the_files_the_folder_and_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr(squad_download, "SOURCE_URL", address)
    output = tmp_path / "out"
    for download in (True, False):
        message = prepare_error(tmp_path / "data", output, download=download)
        for part in ("train-v1.1.json and dev-v1.1.json", str(output), address):
            assert part in message


def test_xquad_is_in_the_squad_format(tmp_path: Path) -> None:
    counts = prepared(shared_path("data/xquad-en"), tmp_path)
    truth = rows_of(tmp_path / "squad_test_ground_truth.jsonl")
    assert len({row["id"] for row in truth}) == len(truth) == counts["squad_test.jsonl"]
    assert all(row["answer"] and isinstance(row["answer"], list) for row in truth)
