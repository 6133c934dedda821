# SPDX-License-Identifier: Apache-2.0
"""generate and score: order, options, output, and errors without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from nemo_launcher.evaluation import scoring
from tests import t5
from tests.cli.conftest import Run
from tests.engine import squad_records, write_jsonl
from tests.jobs import REPOSITORY
from tests.shared import shared_path

pytestmark = pytest.mark.unit
FIVE = ("--tokens-to-generate", "5")


def questions(folder: Path, count: int = 6, leave_out: Sequence[str] = ()) -> Path:
    records = [{k: v for k, v in record.items() if k not in leave_out} for record in squad_records(count)]
    return write_jsonl(folder / "questions.jsonl", records)


@pytest.fixture
def both(tiny_base: Path, adapter: Path) -> list[str]:
    """Return the options with the tiny base and its adapter."""
    return ["--base", str(tiny_base), "--adapter", str(adapter)]


# --- records ----------------------------------------------------------------------------------------------------


def test_records_come_back_in_order_with_their_fields(run: Run, both: list[str], tmp_path: Path) -> None:
    command = ("generate", *both, "--jsonl", questions(tmp_path), *FIVE)
    found = run(*command).lines
    assert [line["question"] for line in found] == [record["question"] for record in squad_records(6)]
    assert [{k: v for k, v in line.items() if k not in ("prediction", "token_ids")} for line in found] == squad_records(
        6
    )
    assert run(*command, "--batch-size", "1").lines == found


def test_scores_depend_on_no_batch(run: Run, both: list[str], tmp_path: Path) -> None:
    data = questions(tmp_path)
    together, alone = run("score", *both, data).lines, run("score", *both, data, "--batch-size", "1").lines
    for key in ("nll_sum", "nll_mean", "answer_tokens"):
        assert [line[key] for line in together] == pytest.approx([line[key] for line in alone], rel=1e-5)


def test_memory_that_runs_out_is_told(
    run: Run, both: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(scoring, "token_losses", runs_out)
    told = run("score", *both, questions(tmp_path)).refused()
    assert "the memory of the GPU ran out: CUDA out of memory. Tried" in told
    assert "--batch-size" in told


def test_a_template_makes_taskname_and_adapter_unnecessary(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path, leave_out=["taskname"])
    template = ["--template", "{context} {question} {answer}", "--answer-field", "answer"]
    scores = run("score", "--base", tiny_base, *template, data).lines
    assert min(line["nll_sum"] for line in scores) > 0
    assert "--template" in run("score", "--base", tiny_base, data).refused()
    unlabelled = questions(tmp_path, leave_out=["taskname", "answer"])
    assert len(run("generate", "--base", tiny_base, *template, "--jsonl", unlabelled, *FIVE).lines) == 6


def test_an_adapter_with_one_template_needs_no_taskname(run: Run, both: list[str], tmp_path: Path) -> None:
    named = run("score", *both, questions(tmp_path)).lines
    assert run("score", *both, questions(tmp_path, leave_out=["taskname"])).lines == named


def test_t5_without_an_adapter_follows_settings_and_template(run: Run, tmp_path: Path) -> None:
    base = t5.tiny_base(tmp_path / "base.nemo")
    data = write_jsonl(tmp_path / "a.jsonl", [{"q": "where is anna", "a": "den"}, {"q": "where", "a": "the inn"}])
    options = ["--template", "question : {q} answer : {a}", "--answer-field", "a"]
    assert "decoder_starts_with_pad: True" in run("score", "--base", base, *options, data).refused()
    options += ["--set", "data.decoder_starts_with_pad=True"]
    assert len(run("score", "--base", base, *options, data).lines) == 2
    assert len(run("generate", "--base", base, *options, "--jsonl", data, *FIVE).lines) == 2


def test_what_is_remarked_stays_out_of_the_results(run: Run, tmp_path: Path) -> None:
    base = t5.tiny_base(tmp_path / "base.nemo")
    data = write_jsonl(tmp_path / "a.jsonl", [{"q": "where is anna " * 400, "a": "den"}])
    options = ["--template", "question : {q} answer : {a}", "--answer-field", "a"]
    options += ["--set", "data.decoder_starts_with_pad=True"]
    result = run("generate", "--base", base, *options, "--jsonl", data, *FIVE)
    assert len(result.lines) == 1
    assert "1 of 1 prompts were cut" in result.err


# --- prompts ----------------------------------------------------------------------------------------------------


def test_prompts_give_answers_or_with_json_lines(run: Run, both: list[str]) -> None:
    command = ("generate", *both, "--prompt", "Anna lives near", "--prompt", "The river", *FIVE)
    found = run(*command, "--json").lines
    assert [line["prompt"] for line in found] == ["Anna lives near", "The river"]
    assert all(0 < len(line["token_ids"]) <= 5 for line in found)
    assert run(*command).out == "".join(line["prediction"] + "\n" for line in found)


@pytest.mark.parametrize("option", ["--temperature", "--top-k", "--top-p", "--repetition-penalty"])
def test_an_option_of_drawing_draws_by_the_seed(option: str, run: Run, tiny_base: Path) -> None:
    value = {"--temperature": "5", "--top-k": "50", "--top-p": "0.99", "--repetition-penalty": "1.1"}[option]
    command = ("generate", "--base", tiny_base, "--prompt", "Anna lives", "--json", option, value, "--seed")
    assert run(*command, "1").lines == run(*command, "1").lines
    assert len({str(run(*command, seed).lines) for seed in "123"}) > 1


def test_the_most_likely_of_one_is_the_greedy_token(run: Run, tiny_base: Path) -> None:
    command = ("generate", "--base", tiny_base, "--prompt", "Anna lives", *FIVE)
    assert run(*command, "--top-k", "1") == run(*command)
    assert run(*command, "--set", "inference.greedy=False", "--set", "inference.top_k=1") == run(*command)


# --- settings and output ----------------------------------------------------------------------------------------


def test_settings_change_how_prompts_are_made(run: Run, both: list[str], tmp_path: Path) -> None:
    command = ("score", *both, questions(tmp_path))
    plain, without_end = run(*command).lines, run(*command, "--set", "data.add_eos=False").lines
    assert [line["answer_tokens"] - 1 for line in plain] == [line["answer_tokens"] for line in without_end]
    with_bos = run(*command, "--set", "data.add_bos=True").lines
    assert [line["answer_tokens"] for line in with_bos] == [line["answer_tokens"] for line in plain]
    assert with_bos != plain
    short = run("generate", *both, "--jsonl", questions(tmp_path), "--set", "inference.tokens_to_generate=2").lines
    assert max(len(line["token_ids"]) for line in short) <= 2


def test_output_is_whole_or_as_it_was(run: Run, both: list[str], tmp_path: Path) -> None:
    command = ("score", *both, questions(tmp_path), "--output", tmp_path / "new" / "out.jsonl")
    printed = run(*command[:-2]).out
    assert run(*command) == (0, "", "")
    assert (tmp_path / "new" / "out.jsonl").read_text() == printed
    assert run(*command, "--set", "data.max_seq_length=3").status == 2
    assert (tmp_path / "new" / "out.jsonl").read_text() == printed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]


# --- mistakes ---------------------------------------------------------------------------------------------------

MISTAKES: Mapping[str, tuple[list[str], str]] = {
    "base_absent": (["--base", "/nowhere/b.nemo"], "/nowhere/b.nemo: no such .nemo file or folder"),
    "precision": (["--precision", "fp7"], "--precision: unknown precision 'fp7'"),
    "precision_of_others": (["--precision", "fp16"], "did you mean '16'?"),
    "batch_size": (["--batch-size", "0"], "0 is not a whole number of at least 1"),
    "no_setting": (["--set", "nonsense"], "is not key=value"),
    "unknown_setting": (["--set", "data.add_eso=False"], "did you mean 'data.add_eos'?"),
    "setting_type": (["--set", "data.add_bos=maybe"], "must be True or False, not the text 'maybe'"),
    "setting_bound": (["--set", "data.max_seq_length=0"], "must be at least 1"),
    "setting_yaml": (["--set", "data.add_bos=[1"], "--set data.add_bos=[1: "),
    "too_long": (["--set", "data.max_seq_length=3"], "prompts are longer than 3 tokens"),
    "option": (["--presicion", "32"], "did you mean '--precision'?"),
    "answer_without_template": (["--answer-field", "answer"], "--template, which is not given"),
    "template_field": (["--template", "{answer} {contxt}"], "did you mean 'context'?"),
    "template_answer": (["--template", "{question}", "--answer-field", "answer"], "'answer' is not a field of"),
    "output_is_folder": (["--output", "/"], "is a folder"),
    "output_is_device": (["--output", "/dev/null"], "is a device or pipe"),
}


MISUSES: Mapping[str, tuple[list[str], str]] = {
    "prompt_misspelt": (["generate", "--base", "b", "--promt", "x"], "did you mean '--prompt'?"),
    "prompt_misspelt_with_value": (["generate", "--base", "b", "--promt=x"], "did you mean '--prompt'?"),
    "model": (["generate", "--model", "b", "--prompt", "x"], "did you mean '--base'?"),
    "tokens": (["generate", "--base", "b", "--prompt", "x", "--max-tokens", "3"], "'--tokens-to-generate'?"),
    "output": (["score", "--base", "b", "x", "-o", "y"], "did you mean '--output'?"),
    "nothing_to_answer": (["generate", "--base", "b"], "one of the arguments --prompt --jsonl is required"),
    "nothing_at_all": (["generate"], "nemo-launcher generate --help lists all arguments"),
    "both": (["generate", "--base", "b", "--prompt", "x", "--jsonl", "y"], "not allowed with argument --prompt"),
    "verb": (["generat", "--base", "b"], "did you mean 'generate'?"),
    "no_data": (["score", "--base", "b"], "DATA.jsonl"),
    "too_much_data": (["score", "--base", "b", "x", "y"], "y: no such argument"),
    "no_value": (["generate", "--base", "b", "--prompt"], "expected one argument"),
    "number": (["generate", "--base", "b", "--prompt", "x", "--temperature", "hot"], "invalid float value: 'hot'"),
    "count": (["score", "--base", "b", "x", "--batch-size", "1e3"], "1e3 is not a whole number of at least 1"),
    "digits": (["score", "--base", "b", "x", "--batch-size", "1" + "0" * 5000], "is not a whole number of at least 1"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_wrong_arguments_are_told(misuse: str, run: Run) -> None:
    arguments, words = MISUSES[misuse]
    assert words in run(*arguments).refused()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake: str, run: Run, both: list[str], tmp_path: Path) -> None:
    options, words = MISTAKES[mistake]
    assert words in run("score", *both, questions(tmp_path), *options).refused()


def test_output_below_a_file_is_refused(run: Run, both: list[str], tmp_path: Path) -> None:
    data = questions(tmp_path)
    assert f"{data} is a file, not a folder" in run("score", *both, data, "--output", data / "out").refused()


def test_all_mistakes_of_the_data_are_told(run: Run, both: list[str], tmp_path: Path) -> None:
    records = squad_records(3)
    del records[0]["context"]
    records[2]["taskname"] = "squadd"
    text = run("score", *both, write_jsonl(tmp_path / "a.jsonl", records)).refused()
    assert f"{tmp_path}/a.jsonl:1: no field 'context'" in text
    assert f"{tmp_path}/a.jsonl:3: no task template for taskname 'squadd'" in text
    assert "no such file" in run("score", *both, tmp_path / "b.jsonl").refused()


def test_wrong_archives_are_refused(run: Run, both: list[str], tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    data = questions(tmp_path)
    swapped = run("score", "--base", adapter, "--adapter", tiny_base, data).refused()
    assert f"{adapter}: is an adapter, not a base model" in swapped
    assert str(tiny_base) in swapped
    doubled = run("score", "--base", tiny_base, "--adapter", tiny_base, data).refused()
    assert "is a base model, not an adapter" in doubled
    other = shared_path("oracle/base_gpt.nemo")
    assert "belongs to another base model" in run("score", "--base", other, "--adapter", adapter, data).refused()
    of_t5 = shared_path("oracle/ia3_t5.nemo")
    text = run("score", "--base", tiny_base, "--adapter", of_t5, data).refused()
    assert "is an adapter for a T5 model, the base is a GPT model" in text
    assert "/oracle/base_t5.nemo" in text


# --- processes --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_help_imports_no_torch() -> None:
    code = "import sys, nemo_launcher.cli as c\ntry: c.main(['score', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'omegaconf' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


@pytest.mark.integration
def test_standard_output_holds_results_alone_and_may_be_closed(both: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nemo_launcher.cli", "score", *both, str(questions(tmp_path))]
    options = {"cwd": REPOSITORY, "env": os.environ | {"PYTHONPATH": str(REPOSITORY)}, "text": True}
    done = subprocess.run(command, capture_output=True, check=True, **options)
    assert [set(json.loads(line)) for line in done.stdout.splitlines()] == [
        {"nll_sum", "nll_mean", "answer_tokens"}
    ] * 6
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, **options)
    os.close(writing)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
