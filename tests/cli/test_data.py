# SPDX-License-Identifier: Apache-2.0
"""nemo-launcher data: what is told about data files, and that it is what training makes of them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.evaluation.session import Session
from tests.cli.conftest import Run
from tests.engine import write_jsonl
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit
TEMPLATE = "context: {context} question: {question} answer: {answer}"
PROMPT = ("--template", TEMPLATE, "--answer-field", "answer")


def record(number: int, answer: str = "yes", **fields: object) -> dict[str, object]:
    shared = "The river rises in the hills and reaches the sea after a long way through the old town. " * 2
    return {"taskname": "qa", "context": shared, "question": f"number {number}?", "answer": answer, **fields}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Training, validation and test data with duplicates, and common questions."""
    train = [record(number, "yes" if number % 4 else "no") for number in range(40)]
    train += [record(5), record(6, "no")]  # a duplicate, and another answer
    validation = [record(number) for number in (100, 101, 7)]
    test = [{name: value for name, value in record(8).items() if name != "answer"}]
    paths = [tmp_path / f"{name}.jsonl" for name in ("train", "val", "test")]
    for path, records in zip(paths, (train, validation, test), strict=True):
        write_jsonl(path, records)
    return paths


def facts(run: Run, *arguments: str | Path) -> list[dict[str, Any]]:
    return run("data", *arguments, "--json").lines


def test_duplicates_labels_and_common_records_without_a_base(run: Run, files: list[Path]) -> None:
    train, validation, test = facts(run, *files, *PROMPT)
    assert (train["records"], train["tokens"]) == (42, None)
    assert train["labels"] == {"answer": {"yes": 31, "no": 11}}
    assert train["repeated"] == {"count": 1, "examples": [[f"{files[0]}:41", f"{files[0]}:6"]]}
    assert train["contradictory"] == {"count": 1, "examples": [[f"{files[0]}:42", f"{files[0]}:7"]]}
    assert validation["common"] == {str(files[0]): {"count": 1, "examples": [[f"{files[1]}:3", f"{files[0]}:8"]]}}
    assert test["common"][str(files[0])]["count"] == 1  # although the test data has no answers


def test_a_name_that_no_file_can_have_is_told(run: Run) -> None:
    name = "/" + "n" * 300
    found = run("data", name)
    assert (found.status, found.err) == (1, f"a name or path is too long: {name}\n")


def test_labels_that_begin_alike_are_counted_apart(run: Run, tmp_path: Path) -> None:
    labels = ["\x1b" * 40 + "a"] * 6 + ["\x1b" * 40 + "b"] * 2
    write_jsonl(tmp_path / "a.jsonl", [record(number, label) for number, label in enumerate(labels)])
    printed = run("data", tmp_path / "a.jsonl", *PROMPT).out.splitlines()
    shown = printed[printed.index("  values of answer") + 1 :]
    assert [line.split()[1:] for line in shown] == [["6", "75.0%"], ["2", "25.0%"]]
    assert max(map(len, shown)) <= 80


def test_without_a_template_every_field_but_the_id_counts(run: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [record(1, id="a"), record(1, id="b"), record(2, id="c")])
    (found,) = facts(run, tmp_path / "a.jsonl")
    assert found["repeated"]["count"] == 1
    assert found["fields"]["id"] == 3
    assert found["characters"]["answer"]["maximum"] == 3


def test_records_of_a_known_form_need_no_template(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    """Completions are the labels, and the samples are those of training."""
    pairs = [{"prompt": f"{n} is", "completion": " even" if n % 2 == 0 else " odd"} for n in range(8)]
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs, pairs[0] | {"completion": " odd"}])
    plain = run("data", path, "--json")
    assert "records without a template: `prompt` followed by `completion`" in plain.err
    (found,) = plain.lines
    assert found["labels"] == {"completion": {" odd": 5, " even": 4}}
    assert found["contradictory"]["count"] == 1
    (found,) = facts(run, path, "--base", tiny_base)
    parts = found["tokens"]["samples"][0]["parts"]
    assert [(part["text"].removesuffix("</s>"), part["is_trained"]) for part in parts] == [
        ("0 is", False),
        (" even", True),
    ]
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "2?"}]}])
    assert "no chat template" in run("data", tmp_path / "chat.jsonl", "--base", tiny_base).err


def test_tokens_are_those_of_training(run: Run, files: list[Path], tiny_base: Path) -> None:
    length = 112
    (found,) = facts(run, files[0], *PROMPT, "--base", tiny_base, "--set", f"encoder_seq_length={length}")
    session = Session.open(tiny_base, None, precision="32", settings=[f"encoder_seq_length={length}"])
    entry = {"taskname": "qa", "prompt_template": TEMPLATE, "answer_field": "answer", "answer_only_loss": True}
    remarks: list[str] = []
    template = TaskTemplate.from_config(entry)
    samples = encode_files([files[0]], [template], session.encoder(), max_dropped_share=1.0, report=remarks.append)
    tokens = found["tokens"]
    assert tokens["too_long"] == 42 - len(samples)
    assert tokens["trained_tokens"] == sum(sample.num_trained_tokens for sample in samples)
    assert tokens["tokens"] == sum(sample.num_input_tokens for sample in samples)
    assert tokens["lengths"]["minimum"] <= tokens["lengths"]["median"] <= tokens["lengths"]["maximum"]
    assert sum(row["count"] for row in tokens["histogram"]) == 42


def test_shared_prefixes_are_counted_in_global_batches(run: Run, files: list[Path], tiny_base: Path) -> None:
    arguments = (files[0], *PROMPT, "--base", tiny_base)
    shares = [
        facts(run, *arguments, "--global-batch-size", str(size))[0]["tokens"]["computed_share"] for size in (1, 4, 64)
    ]
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > shares[2] > 0


def test_the_trained_part_is_marked_without_colour(run: Run, files: list[Path], tiny_base: Path) -> None:
    shown = run("data", files[0], *PROMPT, "--base", tiny_base)
    assert shown.status == 0
    lines = shown.out.splitlines()
    assert any(line.startswith("    > ") and "no" in line for line in lines)  # the first sample's answer
    assert any(line.startswith("    | ") and "context:" in line for line in lines)
    assert all(len(line) <= 80 for line in lines if str(files[0]) not in line)
    assert "</s>" in shown.out  # the end-of-text token, which decoding omits
    (found,) = facts(run, files[0], *PROMPT, "--base", tiny_base)
    sample = found["tokens"]["samples"][0]
    assert [part["is_trained"] for part in sample["parts"]] == [False, True]
    assert sample["parts"][1]["text"].strip().startswith("no")


def test_records_without_answers_are_shown_as_prompts(run: Run, files: list[Path], tiny_base: Path) -> None:
    (found,) = facts(run, files[2], *PROMPT, "--base", tiny_base)
    assert found["tokens"]["trained_tokens"] is None
    (part,) = found["tokens"]["samples"][0]["parts"]
    assert not part["is_trained"]
    shown = run("data", files[2], *PROMPT, "--base", tiny_base)
    assert "the records have no answers" in shown.out
    assert f"{files[2]}:1: no answer in 'answer', so the file's records are taken as prompts" in shown.err


@pytest.mark.parametrize("with_base", [False, True])
def test_a_misspelt_answer_field_is_told(run: Run, files: list[Path], tiny_base: Path, with_base: bool) -> None:
    options = ("--template", TEMPLATE.replace("{answer}", "{answr}"), "--answer-field", "answr")
    found = run("data", files[0], *options, *(("--base", tiny_base) if with_base else ()))
    assert found.status == 0
    assert f"{files[0]}:1: no answer in 'answr'" in found.err
    assert "did you mean 'answer'?" in found.err
    assert not run("data", files[0], *PROMPT).err


def test_the_adapter_gives_template_and_settings(run: Run, adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [record(1) | {"taskname": "squad"}])
    (found,) = facts(run, tmp_path / "a.jsonl", "--base", tiny_base, "--adapter", adapter)
    assert found["tokens"]["trained_tokens"] > 0


def test_a_table_is_described_like_lines(run: Run, files: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    names = ["taskname", "context", "question", "answer"]
    rows = [[str(record(number, "yes" if number % 4 else "no")[name]) for name in names] for number in range(40)]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    table, lines = facts(run, tmp_path / "table.csv", files[0], *PROMPT, "--base", tiny_base)
    assert table["labels"] == {"answer": {"yes": 30, "no": 10}}
    assert table["tokens"]["lengths"] == lines["tokens"]["lengths"]
    assert lines["common"][str(tmp_path / "table.csv")]["count"] == 42


def test_columns_of_a_table_are_told_and_may_be_renamed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id;passage;question;answers\n" + "".join(f"{n};text;q{n};yes\n" for n in range(4)))
    fields = ("--fields", "context=passage", "answer=answers")
    (found,) = facts(run, path, *PROMPT, *fields)
    assert found["table"] == "columns separated by semicolons: id, passage, question, answers"
    assert found["labels"] == {"answer": {"yes": 4}}
    (bare,) = facts(run, path, *fields)  # without a template
    assert "context" in bare["fields"]
    assert "table             columns separated by semicolons" in run("data", path, *PROMPT, *fields).out
    refused = run("data", path, "--fields", "context")
    assert (refused.status, "--fields context: is not FIELD=COLUMN" in refused.err) == (2, True)


def test_nested_columns_are_those_of_training(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"context": "c", "question": f"q{n}", "answers": {"text": ["yes", "no"]}} for n in range(3)]
    path = write_jsonl(tmp_path / "squad.jsonl", rows)
    (found,) = facts(run, path, *PROMPT, "--base", tiny_base, "--fields", "answer=answers.text")
    assert found["tokens"]["samples"][0]["parts"][1]["text"].strip().startswith("yes")
    assert found["labels"] == {"answer": {"yes": 3}}


def test_nearly_equal_samples_of_all_files(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    pytest.importorskip("datasketch")
    texts = [" ".join(f"{word}{place}" for place in range(40)) for word in ("red", "green", "blue", "gold")]
    rows = [record(number, context=text) for number, text in enumerate(texts)]
    train = write_jsonl(tmp_path / "train.jsonl", [*rows[:3], rows[1] | {"question": "number 7?"}, rows[2]])
    test = write_jsonl(tmp_path / "test.jsonl", [rows[3], rows[0] | {"question": "which number?"}])
    options = (train, test, *PROMPT, "--base", tiny_base, "--near-duplicates", "0.8")
    first, second = facts(run, *options)
    assert first["near"] == {"count": 1, "examples": [[f"{train}:4", f"{train}:2"]]}  # an equal one is a duplicate
    assert (second["near"]["count"], first["near_common"]) == (0, {})
    assert second["near_common"] == {str(train): {"count": 1, "examples": [[f"{test}:2", f"{train}:1"]]}}
    printed = run("data", *options).out
    assert "  nearly equal      1 (lines 4 = 2)\n" in printed
    assert f"  nearly equal in   {train}\n                    1 (lines 2 = 1)\n" in printed
    assert facts(run, train, *PROMPT, "--base", tiny_base)[0]["near"] is None


@pytest.mark.parametrize("share", ["0", "1.5", "nan", "inf"])
def test_mistakes_about_nearly_equal_samples(run: Run, files: list[Path], share: str) -> None:
    found = run("data", files[0], "--near-duplicates", share)
    assert found.status == 2
    assert f"--near-duplicates {share}: is not between 0.1 and 1" in found.err
    assert "--near-duplicates: compares tokens, which needs a tokenizer" in found.err


def test_the_library_for_nearly_equal_samples_is_named(
    run: Run, files: list[Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    found = run("data", files[0], *PROMPT, "--base", tiny_base, "--near-duplicates", "0.9")
    assert "pip install 'nemo-adapter-launcher[near-duplicates]'" in found.err


def test_all_problems_of_all_files_at_once(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"context": "c", "question": 1, "answer": "a"}\n{"context": "c"}\n')
    (tmp_path / "b.jsonl").write_text("not JSON\n")
    for base in ([], ["--base", tiny_base]):
        message = run(
            "data", tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl", *PROMPT, *base
        ).refused()
        for part in ("a.jsonl:1", "holds a number", "a.jsonl:2", "no field", "b.jsonl", "c.jsonl", "no such file"):
            assert part in message


def test_mistakes_in_options(run: Run, files: list[Path], tiny_base: Path) -> None:
    assert "--template" in run("data", files[0], "--base", tiny_base).refused()
    assert "--base" in run("data", files[0], "--set", "data.add_bos=True").refused()
    assert "--global-batch-size" in run("data", files[0], "--global-batch-size", "0").refused()


def test_control_characters_of_data_do_not_reach_the_terminal(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [record(1, "\x1b[31mred"), record(2, "\x1b[31mred")])
    for base in ([], ["--base", tiny_base]):
        assert "\x1b" not in run("data", tmp_path / "a.jsonl", *PROMPT, *base).out


def test_without_a_base_torch_is_not_imported(files: list[Path]) -> None:
    code = (
        "import sys; from nemo_launcher.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status or any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "data", *map(str, files), *PROMPT], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
