# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data import preparation, squad, squad_download
from nemo_launcher.errors import UserError
from tests.shared import shared_path

pytestmark = pytest.mark.unit
SQUAD = squad.SquadBuilder()
MANIFEST_NAME = preparation.manifest_name(SQUAD.dataset)


def _content(*questions: tuple[str, list[str]], context: str = "Warsaw lies on the Vistula.") -> dict[str, Any]:
    entries = [
        {"id": f"q{index}", "question": text, "answers": [{"text": answer, "answer_start": 0} for answer in answers]}
        for index, (text, answers) in enumerate(questions)
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": entries}]}]}


TRAIN = _content(("Which city?", ["Warsaw"]), ("Unanswered?", []), ("Which river?", ["the Vistula", "Vistula"]))
DEV = _content(("Où?", ["sur la Vistule", "Vistule", "Vistule"]))


def _write_sources(folder: Path, train: Any = TRAIN, dev: Any = DEV, names: tuple[str, str] = ("train", "dev")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (train, dev), strict=True):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def _prepare(source: Path, output: Path, download: bool = False) -> dict[str, int]:
    return SQUAD.prepare(source, output, download=download, report=lambda line: None)


def _prepare_error(source: Path, output: Path, download: bool = False) -> str:
    with pytest.raises(UserError) as error:
        _prepare(source, output, download)
    return str(error.value)


def test_the_four_files_hold_what_is_documented(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "prompt_data" / "v1.1"
    counts = _prepare(tmp_path, output)
    context = {"taskname": "squad", "context": "Warsaw lies on the Vistula."}
    assert _rows(output / "squad_train.jsonl") == [
        {**context, "question": "Which city?", "answer": "Warsaw"},
        {**context, "question": "Which river?", "answer": "the Vistula"},
    ]
    assert _rows(output / "squad_val.jsonl") == [{**context, "question": "Où?", "answer": "sur la Vistule"}]
    assert _rows(output / "squad_test.jsonl") == [{**context, "question": "Où?"}]
    assert _rows(output / "squad_test_ground_truth.jsonl") == [
        {**context, "question": "Où?", "answer": ["sur la Vistule", "Vistule", "Vistule"], "id": "q0"}
    ]
    assert counts == {
        "squad_train.jsonl": 2,
        "squad_val.jsonl": 1,
        "squad_test.jsonl": 1,
        "squad_test_ground_truth.jsonl": 1,
    }


def test_the_output_folder_is_searched_first_and_the_source_folder_last(tmp_path: Path) -> None:
    output, source = tmp_path / "out", tmp_path / "data"
    assert squad.find_sources(source, output) is None
    for folder in (source, source / "prompt_data" / "v1.1", output):
        _write_sources(folder)
        assert squad.find_sources(source, output) == (folder / "train.json", folder / "dev.json")
        _write_sources(folder, names=("train-v1.1", "dev-v1.1"))
        assert squad.find_sources(source, output) == (folder / "train-v1.1.json", folder / "dev-v1.1.json")


def test_the_same_sources_leave_everything_untouched(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    counts = _prepare(tmp_path, output)
    before = _state(output)
    assert SQUAD.is_prepared(tmp_path, output)
    assert _prepare(tmp_path, output) == counts
    assert _state(output) == before


@pytest.mark.parametrize("change", ["other train", "other dev", "cut output", "lost output", "lost manifest"])
def test_other_sources_or_a_damaged_output_are_prepared_again(tmp_path: Path, change: str) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    _prepare(tmp_path, output)
    if change.startswith("other"):
        other = _content(("Who?", ["Chopin"]))
        _write_sources(tmp_path, **{change.split()[1]: other})
    else:
        name = MANIFEST_NAME if change == "lost manifest" else "squad_val.jsonl"
        (output / name).write_text("{}") if change == "cut output" else (output / name).unlink()
    assert not SQUAD.is_prepared(tmp_path, output)
    _prepare(tmp_path, output)
    assert SQUAD.is_prepared(tmp_path, output)
    assert len(_rows(output / "squad_val.jsonl")) == 1


def test_sources_may_go_once_the_data_is_prepared(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    counts = _prepare(tmp_path, output)
    (tmp_path / "train.json").unlink()
    (tmp_path / "dev.json").unlink()
    assert _prepare(tmp_path, output) == counts


def test_files_that_came_prepared_are_used_and_counted(tmp_path: Path) -> None:
    for name in SQUAD.dataset.files:
        (tmp_path / name).write_text('{"question": "q"}\n{"question": "r"}\n')
    assert SQUAD.is_prepared(tmp_path, tmp_path)
    assert _prepare(tmp_path, tmp_path) == dict.fromkeys(SQUAD.dataset.files, 2)


def test_a_file_of_the_users_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    (output / "squad_train.jsonl").write_text("mine")
    lines: list[str] = []
    SQUAD.prepare(tmp_path, output, download=False, report=lines.append)
    assert (output / "squad_train.jsonl.bak").read_text() == "mine"
    assert any("kept as squad_train.jsonl.bak" in line for line in lines)
    assert len(_rows(output / "squad_train.jsonl")) == 2


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    write_rows = preparation._write_rows

    def full_disk(path: Path, rows: Any) -> int:
        if "ground_truth" in path.name:
            raise OSError(28, "No space left on device")
        return write_rows(path, rows)

    monkeypatch.setattr(preparation, "_write_rows", full_disk)
    with pytest.raises(OSError, match="No space"):
        _prepare(tmp_path, output)
    assert list(output.iterdir()) == []


def test_a_failed_second_run_keeps_the_first(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    _prepare(tmp_path, output)
    before = _state(output)
    _write_sources(tmp_path, train="{broken")
    _prepare_error(tmp_path, output)
    assert _state(output) == before


def test_an_interrupted_second_run_leaves_no_manifest_that_vouches_for_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    _prepare(tmp_path, output)
    _write_sources(tmp_path, train=_content(("Who?", ["Chopin"])))
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).name == "squad_train.jsonl":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tmp_path, output)
    monkeypatch.undo()
    assert not (output / MANIFEST_NAME).exists()
    _prepare(tmp_path, output)
    assert [row["answer"] for row in _rows(output / "squad_train.jsonl")] == ["Chopin"]


def test_every_mistake_of_both_files_is_told_with_its_place(tmp_path: Path) -> None:
    train = _content(("Which city?", ["Warsaw"]))
    paragraph = train["data"][0]["paragraphs"][0]
    paragraph["qas"].append({"id": 3, "answers": [{"txt": "x"}]})
    del paragraph["context"]
    _write_sources(tmp_path, train=train, dev="[]")
    message = _prepare_error(tmp_path, tmp_path / "out")
    assert f"{tmp_path / 'train.json'}: data[0].paragraphs[0]: has no 'context'" in message
    assert "data[0].paragraphs[0].qas[1].id: is a number, not text" in message
    assert "data[0].paragraphs[0].qas[1]: has no 'question'" in message
    assert "data[0].paragraphs[0].qas[1].answers[0]: has no 'text'" in message
    assert f"{tmp_path / 'dev.json'}: is a list, not an object" in message
    assert not (tmp_path / "out").exists()


def test_broken_json_is_named_by_file_line_and_column(tmp_path: Path) -> None:
    _write_sources(tmp_path, train='{"data": [\n  {"paragraphs": [}]}')
    assert f"{tmp_path / 'train.json'}:2:19: not JSON" in _prepare_error(tmp_path, tmp_path / "out")


def test_a_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    _write_sources(tmp_path, dev=_content(("Unanswered?", []), ("Blank?", [" "])))
    assert "holds no question with an answer" in _prepare_error(tmp_path, tmp_path / "out")


def test_unanswerable_questions_are_counted_and_said(tmp_path: Path) -> None:
    train = _content(("Which city?", ["Warsaw"]), ("Impossible?", []), ("Blank?", [" "]))
    train["version"] = "v2.0"
    train["data"][0]["paragraphs"][0]["qas"][1] |= {"is_impossible": True, "plausible_answers": [{"text": "x"}]}
    _write_sources(tmp_path, train=train)
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
    _write_sources(tmp_path)
    content = train if isinstance(train, bytes) else (train if isinstance(train, str) else json.dumps(train)).encode()
    (tmp_path / "train.json").write_bytes(content)
    message = _prepare_error(tmp_path, tmp_path / "out")
    assert f"{tmp_path / 'train.json'}" in message
    assert what in message
    assert len(message.splitlines()) <= 10
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{", '{"sources": {}, "outputs": 7}', '{"sources": {"a": "b"}, "outputs": {"squad_train.jsonl": []}}'],
)
def test_a_damaged_manifest_is_made_again(tmp_path: Path, manifest: str) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    counts = _prepare(tmp_path, output)
    whole = (output / MANIFEST_NAME).read_text()
    wrong_type = json.loads(whole)
    wrong_type["outputs"]["squad_val.jsonl"]["bytes"] = "9"
    for text in (manifest, json.dumps(wrong_type)):
        (output / MANIFEST_NAME).write_text(text)
        assert not SQUAD.is_prepared(tmp_path, output)
        assert _prepare(tmp_path, output) == counts
        assert (output / MANIFEST_NAME).read_text() == whole
    assert not list(output.glob("*.bak*"))


def test_what_was_kept_once_is_not_replaced_by_the_next(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    output = tmp_path / "out"
    for number in range(3):
        output.mkdir(exist_ok=True)
        (output / "squad_train.jsonl").write_text(f"mine {number}\n")
        _prepare(tmp_path, output)
    kept = {path.name: path.read_text() for path in output.glob("*.bak*")}
    assert kept == {f"squad_train.jsonl.bak{number or ''}": f"mine {max(0, number - 1)}\n" for number in (0, 2, 3)}


def test_half_a_pair_is_told_instead_of_downloading_something_else(tmp_path: Path) -> None:
    _write_sources(tmp_path)
    (tmp_path / "dev.json").unlink()
    message = _prepare_error(tmp_path, tmp_path / "out", download=True)
    assert f"{tmp_path / 'train.json'}: dev.json is missing in the same folder" in message


def _publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a local folder as the published address."""
    _write_sources(folder, names=("train-v1.1", "dev-v1.1"))
    monkeypatch.setattr(squad_download, "SOURCE_URL", folder.as_uri())
    for name in squad_download.OFFICIAL_SHA256:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(squad_download.OFFICIAL_SHA256, name, digest)


def test_missing_sources_are_downloaded_into_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path / "web", monkeypatch)
    output = tmp_path / "out"
    assert _prepare(tmp_path / "data", output, download=True)["squad_train.jsonl"] == 2
    assert (output / "train-v1.1.json").read_bytes() == (tmp_path / "web" / "train-v1.1.json").read_bytes()


def test_an_interrupted_download_goes_on_with_the_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, output = tmp_path / "web", tmp_path / "out"
    _publish(web, monkeypatch)
    dev = (web / "dev-v1.1.json").read_bytes()
    (web / "dev-v1.1.json").unlink()
    _prepare_error(tmp_path / "data", output, download=True)
    (web / "dev-v1.1.json").write_bytes(dev)
    (web / "train-v1.1.json").unlink()
    assert _prepare(tmp_path / "data", output, download=True)["squad_val.jsonl"] == 1


def test_a_download_of_something_else_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(tmp_path / "web", monkeypatch)
    (tmp_path / "web" / "train-v1.1.json").write_text("<html>Please log in</html>")
    message = _prepare_error(tmp_path / "data", tmp_path / "out", download=True)
    assert "wrong SHA-256" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_offline_the_message_names_the_files_the_folder_and_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr(squad_download, "SOURCE_URL", address)
    output = tmp_path / "out"
    for download in (True, False):
        message = _prepare_error(tmp_path / "data", output, download=download)
        for part in ("train-v1.1.json and dev-v1.1.json", str(output), address):
            assert part in message


def test_xquad_is_in_the_squad_format(tmp_path: Path) -> None:
    counts = _prepare(shared_path("data/xquad-en"), tmp_path)
    truth = _rows(tmp_path / "squad_test_ground_truth.jsonl")
    assert len({row["id"] for row in truth}) == len(truth) == counts["squad_test.jsonl"]
    assert all(row["answer"] and isinstance(row["answer"], list) for row in truth)


def test_the_modules_of_the_launcher_import_nothing_heavy() -> None:
    modules = "nemo_launcher.data.squad, nemo_launcher.data.templates, nemo_launcher.evaluation.squad_metrics"
    heavy = {"torch", "numpy", "transformers", "lightning", "nemo", "megatron", "omegaconf"}
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
