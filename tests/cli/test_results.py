# SPDX-License-Identifier: Apache-2.0
"""Outputs of the verbs: inputs are never overwritten, finished answers are never lost, and no number is NaN."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.cli import main
from nemo_launcher.evaluation import prompting
from nemo_launcher.evaluation.file_names import PARTIAL_SUFFIX
from nemo_launcher.evaluation.results import Printed, Written, json_result
from nemo_launcher.evaluation.session import Session
from nemo_launcher.families import base as base_module
from tests import t5
from tests.cli.conftest import Run
from tests.engine import squad_records, write_jsonl
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit
FIVE = ("--tokens-to-generate", "5")


@pytest.fixture
def both(tiny_base: Path, adapter: Path) -> list[str]:
    """Return the options with the tiny base and its adapter."""
    return ["--base", str(tiny_base), "--adapter", str(adapter)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "questions.jsonl", squad_records(12))


# --- outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_input_is_never_the_output(
    link: Callable[..., None] | None, run: Run, both: list[str], data: Path, tmp_path: Path
) -> None:
    output = data
    if link is not None:
        output = tmp_path / "other"
        link(data, output)
    before = data.read_bytes()
    assert "is the input of --jsonl" in run("generate", *both, "--jsonl", data, "--output", output).refused()
    partial = shutil.copy(data, tmp_path / f"out{PARTIAL_SUFFIX}")
    text = run("generate", *both, "--jsonl", partial, "--output", tmp_path / "out").refused()
    assert "answers would be kept in" in text
    assert "is the input of DATA.jsonl" in run("score", *both, data, "--output", output).refused()
    assert "is the input of --base" in run("score", *both, data, "--output", both[1]).refused()
    assert data.read_bytes() == before


@pytest.mark.parametrize("content", [b"\x00\x01binary", b'{"my": "data"}\n', b"some text\n"])
def test_somebodys_file_is_not_replaced_and_an_earlier_output_is(
    content: bytes, run: Run, both: list[str], data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    assert "is not an output of this command" in run("score", *both, data, "--output", output).refused()
    assert output.read_bytes() == content
    output.write_bytes(b"")
    for verb in (("score",), ("generate", *FIVE, "--jsonl")):
        assert run(*verb, data, *both, "--output", output).status == 0
    assert len(output.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (("--prompt", "Hello"), "notes of mine\n"),
        (("--prompt", "Hello"), '{"prediction": "x", "token_ids": [1]}\n'),
        (("--prompt", "Hello", "--json"), '{"token_ids": [1, 2, 3]}\n'),
    ],
    ids=["notes", "answers", "tokenised_data"],
)
def test_what_only_looks_like_an_output_is_not_replaced(
    given: tuple[str, ...], content: str, run: Run, both: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.write_text(content)
    text = run("generate", *both, *given, "--output", output).refused()
    assert "is not an output of this command" in text
    assert output.read_text() == content


def test_an_output_is_no_more_open_than_its_data(run: Run, both: list[str], data: Path, tmp_path: Path) -> None:
    data.chmod(0o600)
    assert run("score", *both, data, "--output", tmp_path / "out").status == 0
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_mistake_in_the_data_is_told_before_the_base_is_loaded(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a field that no template reads, because it would be written to the output."""
    monkeypatch.setattr(base_module, "load_base", None)
    with data.open("a") as file:
        file.write('{"taskname": "squad", "note": "\\ud800"}\n')
    text = run("generate", "--base", tmp_path / "absent.nemo", "--jsonl", data, "--top-p", "nan").refused()
    assert "inference.top_p: nan is out of range" in text
    text = run("generate", "--base", tmp_path / "absent.nemo", "--jsonl", data, "--template", "\udcff").refused()
    assert f"{data}:13: not usable JSON: half of a surrogate pair" in text
    assert "--template: '\\udcff' is not UTF-8" in text
    text = run("generate", "--base", tmp_path / "absent.nemo", "--prompt", "a", "--prompt", "\udcff").refused()
    assert "--prompt: '\\udcff' is not UTF-8" in text


# --- interruptions ----------------------------------------------------------------------------------------------


def interrupt_after(count: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt generation after some answers; return the list of requested places."""
    asked: list[int] = []
    generate = prompting.generate

    def interrupted(*args: Any, keep: Callable[..., None], **options: Any) -> Any:
        def keep_some(place: int, ids: list[int]) -> None:
            asked.append(place)
            if len(asked) > count:
                raise error
            keep(place, ids)

        return generate(*args, keep=keep_some, **options)

    monkeypatch.setattr(prompting, "generate", interrupted)
    return asked


def test_an_interrupted_run_keeps_its_answers_and_the_same_command_goes_on(
    run: Run, both: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", *both, "--jsonl", data, *FIVE, "--batch-size", "2", "--output")
    assert run(*command, tmp_path / "whole").status == 0
    output, partial = tmp_path / "out", tmp_path / f"out{PARTIAL_SUFFIX}"
    with monkeypatch.context() as patch:
        interrupt_after(7, KeyboardInterrupt, patch)
        result = run(*command, output)
        assert (result.status, output.exists()) == (130, False)
        assert f"7 answers are kept in {partial}" in result.err
    with partial.open("ab") as file:
        file.write(b'{"place": 3, "token_')  # a kill in the middle of a line
    other = run(*command, output, "--seed", "7").refused()
    assert f"{partial}: has answers for other data or settings" in other
    with monkeypatch.context() as patch:
        asked = interrupt_after(100, KeyboardInterrupt, patch)
        result = run(*command, output)
        assert (result.status, len(asked)) == (0, 5)
        assert f"resuming from 7 answers in {partial}" in result.err
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("name", ["out.jsonl", "link.jsonl"])
def test_two_never_write_one_output_at_once(run: Run, both: list[str], data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    with Written(str(tmp_path / "out.jsonl"), str):
        for verb in (["generate", "--jsonl", str(data)], ["score", str(data)]):
            result = run(*verb, *both, "--output", str(tmp_path / name))
            assert result.status == 2
            assert "is locked by process" in result.err
    assert run("score", str(data), *both, "--output", str(tmp_path / name)).status == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(
    both: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before, handlers = sorted(tmp_path.iterdir()), [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP)]
    arguments = ["nemo-launcher", "score", str(data), *both, "--output", str(tmp_path / "new/out")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(Session, "open", lambda *_, **__: os.kill(os.getpid(), number))
    try:
        assert main() == 128 + number
    finally:
        for handled, handler in handlers:
            signal.signal(handled, handler)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_no_partial_one_is_left_alone(run: Run, both: list[str], data: Path, tmp_path: Path) -> None:
    (tmp_path / f"out{PARTIAL_SUFFIX}").write_text("mine\n")
    command = ("generate", *both, "--jsonl", data, *FIVE, "--output", tmp_path / "out")
    assert "is not a file of answers" in run(*command).refused()
    assert (tmp_path / f"out{PARTIAL_SUFFIX}").read_text() == "mine\n"


def test_what_is_printed_comes_in_order_as_soon_as_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed(json_result)
    for place in (1, 2, 0):
        printed.take(place, {"n": place})
        seen = capsys.readouterr().out
        assert seen == ("" if place else '{"n": 0}\n{"n": 1}\n{"n": 2}\n')
    printed.end([{"n": place} for place in range(4)])
    assert capsys.readouterr().out == '{"n": 3}\n'


def test_hostile_partial_answers_are_bounded(tmp_path: Path) -> None:
    written = Written(str(tmp_path / "out"), json_result)
    with written:
        written.begin("key")
        written.take(0, {"prediction": "a", "token_ids": [1]})
        written.take(1, {"prediction": "b", "token_ids": [2]})
    content = written.kept.path.read_bytes()
    written.kept.path.write_bytes(content.replace(b"[2]", b"[3]") + b'{"place": -1, "token_ids": [1]}\n')
    assert Written(str(tmp_path / "out"), json_result).begin("key") == {0: [1]}


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every loaded base an infinite weight in its last norm."""
    from nemo_launcher.evaluation import session

    load = session.load_base

    def load_broken(*args: Any, **options: Any) -> Any:
        base = load(*args, **options)
        norms = [p for name, p in base.model.named_parameters() if "norm" in name]
        with torch.no_grad():
            norms[-1][0] = float("inf")
        return base

    monkeypatch.setattr(session, "load_base", load_broken)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_an_output_that_is_not_finite_stops_the_verb_and_names_the_record(
    family: str, run: Run, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    base = tiny_base if family == "gpt" else t5.tiny_base(tmp_path / "base.nemo")
    template = ["--template", "{context} question : {question} answer : {answer}", "--answer-field", "answer"]
    options = ["--base", base, *template, *(["--set", "data.decoder_starts_with_pad=True"] if family == "t5" else [])]
    text = run("generate", *options, "--jsonl", data, *FIVE).refused()
    assert f"{data}:1: the model's output is not finite at token 1 of the answer" in text
    assert "nemo-launcher inspect" in text
    text = run("generate", *options, "--jsonl", data, *FIVE, "--precision", "16").refused()
    assert "try precision bf16 or 32" in text
    text = run("score", *options, data).refused()
    assert f"{data}:1: the model's output is not finite at the loss of its answer" in text


def test_numbers_out_of_range_are_told_before_the_base_is_loaded(run: Run, tmp_path: Path) -> None:
    for option, value in {"--temperature": "nan", "--top-p": "2", "--seed": "1" + "0" * 30}.items():
        text = run("generate", "--base", tmp_path / "absent", "--prompt", "a", option, value).refused()
        assert f"inference.{option[2:].replace('-', '_')}: " in text
        assert "out of range" in text


# --- processes --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_standard_output_may_be_ascii_closed_or_full(both: list[str], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [record | {"note": "é🌉"} for record in squad_records(2)])
    command = [sys.executable, "-m", "nemo_launcher.cli", "generate", *both, "--jsonl", str(data), *FIVE]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    options: dict[str, Any] = {"cwd": REPOSITORY, "env": os.environ | {"PYTHONPATH": str(REPOSITORY)} | ascii_only}
    done = subprocess.run(command, capture_output=True, check=True, **options)
    assert [json.loads(line)["note"] for line in done.stdout.decode("ascii").splitlines()] == ["é🌉"] * 2
    full = subprocess.run(f"{' '.join(command)} > /dev/full", shell=True, capture_output=True, **options)
    assert full.returncode == 1
    assert full.stderr.decode().strip().splitlines()[-1].startswith("disk full while writing standard output")
    closed = subprocess.run(f"{' '.join(command)} >&-", shell=True, capture_output=True, **options)
    assert closed.returncode == 2
    assert "standard output: is closed" in closed.stderr.decode()
