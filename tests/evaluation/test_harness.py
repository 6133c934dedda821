# SPDX-License-Identifier: Apache-2.0
"""The verb `lm-eval`: lm-evaluation-harness's results equal those of its own `hf` model on the same weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.cli import main
from nemo_launcher.conversion.convert import convert
from tests import t5
from tests.api.test_model import adapter_of
from tests.engine import save_llama, squad_records, write_jsonl
from tests.methods import METHODS

pytestmark = pytest.mark.unit

WITHOUT = "lm_eval is not installed: it does not fit constraints.txt (docs/lm-eval.md)"
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason=WITHOUT)

CHOICE = """\
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}} {{{{question}}}}"
doc_to_choice: ["Anna", " the inn", "lives in the inn"]
doc_to_target: 1
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WHOLE = """\
task: own_whole
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{context}}}} {{{{context}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
ANSWER = """\
task: own_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}} {{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"own_choice": CHOICE, "own_whole": WHOLE, "own_answer": ANSWER}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, with the base converted from it beside it."""
    folder = save_llama(tmp_path_factory.mktemp("harness") / "hf", max_position_embeddings=64)
    convert(folder, folder.parent / "base.nemo")
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of each kind, on a local data file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = write_jsonl(folder / "test.jsonl", squad_records(6))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv)
    yield
    sys.argv[:] = arguments


def responses(folder: Path) -> dict[str, list[Any]]:
    """Return what a model answered to each task's requests, from the files of --log_samples."""
    found = {}
    for name in TASKS:
        (path,) = folder.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = [line["resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
    return found


def numbers(values: Any) -> list[float]:
    """Return all numbers and flags in nested lists, which the files hold as numbers or as text."""
    if isinstance(values, list):
        return [number for value in values for number in numbers(value)]
    return [float({"True": 1, "False": 0}.get(str(values), values))]


def arguments_of(tasks: Path, output: Path) -> list[str]:
    words = ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--batch_size", "4", "--device", "cpu"]
    return [*words, "--output_path", str(output), "--log_samples"]


def by_transformers(source: Path, tasks: Path, output: Path, more: str = "") -> dict[str, list[Any]]:
    from lm_eval.__main__ import cli_evaluate

    model = f"pretrained={source},dtype=float32{more}"
    sys.argv[:] = ["lm-eval", "run", "--model", "hf", "--model_args", model, *arguments_of(tasks, output)]
    cli_evaluate()
    return responses(output)


@needs_harness
@pytest.mark.parametrize("with_bos", [False, True])
def test_all_kinds_of_requests_equal_those_of_transformers(
    source: Path, tasks: Path, tmp_path: Path, with_bos: bool
) -> None:
    given = ["--base", str(source.parent / "base.nemo"), "--set", f"data.add_bos={with_bos}"]
    assert main(["lm-eval", *given, *arguments_of(tasks, tmp_path / "own")]) == 0
    own = responses(tmp_path / "own")
    theirs = by_transformers(source, tasks, tmp_path / "hf", f",add_bos_token={with_bos}")
    for name in ("own_choice", "own_whole"):
        assert numbers(own[name]) == pytest.approx(numbers(theirs[name]), rel=1e-4)
    assert len(numbers(own["own_choice"])) == 6 * 3 * 2
    assert own["own_answer"] == theirs["own_answer"]
    assert any(answer[0][0] for answer in own["own_answer"])


@needs_harness
def test_an_adapter_changes_the_results(source: Path, tasks: Path, tmp_path: Path) -> None:
    base = source.parent / "base.nemo"
    adapter = adapter_of(base, METHODS[0], tmp_path / "adapter")
    for name, given in (("without", []), ("with", ["--adapter", str(adapter)])):
        assert main(["lm-eval", "--base", str(base), *given, *arguments_of(tasks, tmp_path / name)]) == 0
    one, other = (responses(tmp_path / name) for name in ("without", "with"))
    assert all(one[name] != other[name] for name in ("own_choice", "own_whole"))


@needs_harness
def test_settings_without_a_counterpart_are_refused(
    source: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--base", str(source.parent / "base.nemo"), "--include_path", str(tasks), "--device", "cpu"]
    assert main(["lm-eval", *given, "--tasks", "own_answer", "--gen_kwargs", "num_beams=4,penalty_alpha=1"]) == 2
    error = capsys.readouterr().err
    assert "gen_kwargs: num_beams" in error
    assert "gen_kwargs: penalty_alpha" in error


@needs_harness
def test_unknown_tasks_are_a_users_mistake(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm-eval", "--base", str(source.parent / "base.nemo"), "--tasks", "no_such_task"]) == 2
    error = capsys.readouterr().err
    assert "no_such_task" in error
    assert "Traceback" not in error


@needs_harness
def test_a_t5_generates_and_refuses_likelihoods_by_name(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = t5.tiny_base(tmp_path / "t5.nemo")
    assert main(["lm-eval", "--base", str(base), *arguments_of(tasks, tmp_path)]) == 2
    assert "is computed for GPT bases only, and this base is a T5" in capsys.readouterr().err
    given = ["--base", str(base), "--set", "data.decoder_starts_with_pad=True", "--include_path", str(tasks)]
    assert main(["lm-eval", *given, "--tasks", "own_answer", "--device", "cpu"]) == 0
    assert "own_answer" in capsys.readouterr().out


def test_the_harness_and_the_base_are_asked_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name))
    words = ["--base", str(tmp_path / "nowhere.nemo"), "--model", "hf", "-a", "pretrained=gpt2", "--tasks", "a", "b"]
    assert main(["lm-eval", *words]) == 2
    error = capsys.readouterr().err
    assert "lm-evaluation-harness is not installed\n    -> pip install 'nemo-adapter-launcher[lm-eval]'" in error
    for where in ("nowhere.nemo", "--model: ", "--model_args: "):
        assert where in error
