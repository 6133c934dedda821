# SPDX-License-Identifier: Apache-2.0
"""SQuAD prepared for training: what its files hold, when they are made again, and whose files are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data import preparation, squad
from tests.data.squad_files import SQUAD, prepare_error, prepared, rows_of, squad_content, write_sources

pytestmark = pytest.mark.unit

MANIFEST_NAME = preparation.manifest_name(SQUAD.dataset)


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_the_four_files_hold_what_is_documented(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "prompt_data" / "v1.1"
    counts = prepared(tmp_path, output)
    context = {"taskname": "squad", "context": "Warsaw lies on the Vistula."}
    assert rows_of(output / "squad_train.jsonl") == [
        {**context, "question": "Which city?", "answer": "Warsaw"},
        {**context, "question": "Which river?", "answer": "the Vistula"},
    ]
    assert rows_of(output / "squad_val.jsonl") == [{**context, "question": "Où?", "answer": "sur la Vistule"}]
    assert rows_of(output / "squad_test.jsonl") == [{**context, "question": "Où?"}]
    assert rows_of(output / "squad_test_ground_truth.jsonl") == [
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
        write_sources(folder)
        assert squad.find_sources(source, output) == (folder / "train.json", folder / "dev.json")
        write_sources(folder, names=("train-v1.1", "dev-v1.1"))
        assert squad.find_sources(source, output) == (folder / "train-v1.1.json", folder / "dev-v1.1.json")


def test_the_same_sources_leave_everything_untouched(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    counts = prepared(tmp_path, output)
    before = state_of(output)
    assert SQUAD.is_prepared(tmp_path, output)
    assert prepared(tmp_path, output) == counts
    assert state_of(output) == before


@pytest.mark.parametrize("change", ["other train", "other dev", "cut output", "lost output", "lost manifest"])
def test_other_sources_or_a_damaged_output_are_prepared_again(tmp_path: Path, change: str) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    prepared(tmp_path, output)
    if change.startswith("other"):
        other = squad_content(("Who?", ["Chopin"]))
        write_sources(tmp_path, **{change.split()[1]: other})
    else:
        name = MANIFEST_NAME if change == "lost manifest" else "squad_val.jsonl"
        (output / name).write_text("{}") if change == "cut output" else (output / name).unlink()
    assert not SQUAD.is_prepared(tmp_path, output)
    prepared(tmp_path, output)
    assert SQUAD.is_prepared(tmp_path, output)
    assert len(rows_of(output / "squad_val.jsonl")) == 1


def test_sources_may_go_once_the_data_is_prepared(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    counts = prepared(tmp_path, output)
    (tmp_path / "train.json").unlink()
    (tmp_path / "dev.json").unlink()
    assert prepared(tmp_path, output) == counts


def test_files_that_came_prepared_are_used_and_counted(tmp_path: Path) -> None:
    for name in SQUAD.dataset.files:
        (tmp_path / name).write_text('{"question": "q"}\n{"question": "r"}\n')
    assert SQUAD.is_prepared(tmp_path, tmp_path)
    assert prepared(tmp_path, tmp_path) == dict.fromkeys(SQUAD.dataset.files, 2)


def test_a_file_of_the_users_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    (output / "squad_train.jsonl").write_text("mine")
    lines: list[str] = []
    SQUAD.prepare(tmp_path, output, download=False, report=lines.append)
    assert (output / "squad_train.jsonl.bak").read_text() == "mine"
    assert any("kept as squad_train.jsonl.bak" in line for line in lines)
    assert len(rows_of(output / "squad_train.jsonl")) == 2


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    write_rows = preparation._write_rows

    def full_disk(path: Path, rows: Any) -> int:
        if "ground_truth" in path.name:
            raise OSError(28, "No space left on device")
        return write_rows(path, rows)

    monkeypatch.setattr(preparation, "_write_rows", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepared(tmp_path, output)
    assert list(output.iterdir()) == []


def test_a_failed_second_run_keeps_the_first(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    prepared(tmp_path, output)
    before = state_of(output)
    write_sources(tmp_path, train="{broken")
    prepare_error(tmp_path, output)
    assert state_of(output) == before


def test_an_interrupted_second_run_leaves_no_manifest_that_vouches_for_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    prepared(tmp_path, output)
    write_sources(tmp_path, train=squad_content(("Who?", ["Chopin"])))
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).name == "squad_train.jsonl":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, output)
    monkeypatch.undo()
    assert not (output / MANIFEST_NAME).exists()
    prepared(tmp_path, output)
    assert [row["answer"] for row in rows_of(output / "squad_train.jsonl")] == ["Chopin"]


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{", '{"sources": {}, "outputs": 7}', '{"sources": {"a": "b"}, "outputs": {"squad_train.jsonl": []}}'],
)
def test_a_damaged_manifest_is_made_again(tmp_path: Path, manifest: str) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    counts = prepared(tmp_path, output)
    whole = (output / MANIFEST_NAME).read_text()
    wrong_type = json.loads(whole)
    wrong_type["outputs"]["squad_val.jsonl"]["bytes"] = "9"
    for text in (manifest, json.dumps(wrong_type)):
        (output / MANIFEST_NAME).write_text(text)
        assert not SQUAD.is_prepared(tmp_path, output)
        assert prepared(tmp_path, output) == counts
        assert (output / MANIFEST_NAME).read_text() == whole
    assert not list(output.glob("*.bak*"))


def test_what_was_kept_once_is_not_replaced_by_the_next(tmp_path: Path) -> None:
    write_sources(tmp_path)
    output = tmp_path / "out"
    for number in range(3):
        output.mkdir(exist_ok=True)
        (output / "squad_train.jsonl").write_text(f"mine {number}\n")
        prepared(tmp_path, output)
    kept = {path.name: path.read_text() for path in output.glob("*.bak*")}
    assert kept == {f"squad_train.jsonl.bak{number or ''}": f"mine {max(0, number - 1)}\n" for number in (0, 2, 3)}


def test_the_modules_of_the_launcher_import_nothing_heavy() -> None:
    modules = "nemo_launcher.data.squad, nemo_launcher.data.templates, nemo_launcher.evaluation.metrics.squad"
    heavy = {"torch", "numpy", "transformers", "lightning", "nemo", "megatron", "omegaconf"}
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
