"""The console verbs: inspect, generate and score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.cli import main
from tests.engine import BOTTLENECK, adapted, job_config, squad_records, write_jsonl
from tests.shared import shared_path

pytestmark = pytest.mark.unit
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb; return exit status, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_launcher.adapters.archive import save_adapter

    folder = tmp_path_factory.mktemp("adapter")
    config = job_config(tiny_base, folder, folder)["model"] | {"adapter_tuning": BOTTLENECK}
    base, adapters = adapted(tiny_base, config)
    save_adapter(folder / "a.nemo", config | {"base_fingerprint": base.fingerprint}, adapters.state_dict())
    return folder / "a.nemo"


def questions(folder: Path, count: int = 6, leave_out: Sequence[str] = ()) -> Path:
    records = [{k: v for k, v in record.items() if k not in leave_out} for record in squad_records(count)]
    return write_jsonl(folder / "questions.jsonl", records)


# --- NVIDIA's answers -------------------------------------------------------------------------------------------


def oracle(name: str) -> dict[str, Any]:
    return torch.load(shared_path(f"oracle/{name}.pt"), weights_only=True)


def files(name: str) -> list[str]:
    family = "t5" if "_t5" in name else "gpt"
    variant = name.partition(f"_{family}")[2]
    base = shared_path(f"oracle/base_{family}{variant}.nemo")
    return ["--base", str(base), "--adapter", str(shared_path(f"oracle/{name}.nemo"))]


@pytest.mark.parametrize("name", ["adapter_gpt", "ia3_gpt"])
def test_generate_gives_nvidias_gpt_tokens(name: str, run: Run, tmp_path: Path) -> None:
    stored = oracle(f"generate_{name}")
    data = write_jsonl(tmp_path / "prompts.jsonl", stored["prompts"])
    status, out, err = run("generate", *files(name), "--jsonl", data, "--tokens-to-generate", "10")
    assert status == 0, err
    wanted = [row[n : n + 10] for row, n in zip(stored["token_ids"], stored["input_lengths"].tolist(), strict=True)]
    assert [line["token_ids"] for line in lines(out)] == wanted
    assert [line["premise"] for line in lines(out)] == [prompt["premise"] for prompt in stored["prompts"]]


@pytest.mark.parametrize("name", ["adapter_t5", "linear_t5", "ia3_t5"])
def test_generate_gives_nvidias_t5_texts(name: str, run: Run, tmp_path: Path) -> None:
    stored = oracle(f"generate_{name}")
    data = write_jsonl(tmp_path / "prompts.jsonl", stored["prompts"])
    settings = ["--set", "nemo_compat=True", "--set", "decoder_seq_length=10"]
    status, out, err = run("generate", *files(name), "--jsonl", data, *settings)
    assert status == 0, err
    assert [line["prediction"] for line in lines(out)] == [text.strip() for text in stored["preds_text"]]


@pytest.mark.parametrize("name", ["adapter_gpt", "adapter_gpt_llama", "ia3_gpt", "linear_gpt", "adapter_t5", "ia3_t5"])
def test_score_gives_nvidias_losses(name: str, run: Run, tmp_path: Path) -> None:
    case = oracle(name)
    data = write_jsonl(tmp_path / "rows.jsonl", case["rows"][:4])
    status, out, err = run("score", *files(name), data)
    assert status == 0, err
    masked = case["token_loss"] * case["batch"]["loss_mask"]
    for line, losses, mask in zip(lines(out), masked, case["batch"]["loss_mask"], strict=True):
        assert line["nll_sum"] == pytest.approx(float(losses.sum()), rel=1e-5)
        assert line["answer_tokens"] == int(mask.sum())
        assert line["nll_mean"] == pytest.approx(line["nll_sum"] / line["answer_tokens"])


# --- generate and score -----------------------------------------------------------------------------------------


def test_records_come_back_in_order_with_their_fields(run: Run, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    data = questions(tmp_path)
    together = run("generate", "--base", tiny_base, "--adapter", adapter, "--jsonl", data, "--tokens-to-generate", "5")
    assert together[0] == 0, together[2]
    assert [line["question"] for line in lines(together[1])] == [record["question"] for record in squad_records(6)]
    one = run(*("generate", "--base", tiny_base, "--adapter", adapter, "--jsonl", data), *OPTIONS_ONE)
    assert one[1] == together[1]


OPTIONS_ONE = ("--tokens-to-generate", "5", "--batch-size", "1")


def test_a_template_makes_taskname_and_adapter_unnecessary(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    data = questions(tmp_path, leave_out=["taskname"])
    template = ["--template", "{context} {question} {answer}", "--answer-field", "answer"]
    status, out, err = run("score", "--base", tiny_base, *template, data)
    assert status == 0, err
    assert min(line["nll_sum"] for line in lines(out)) > 0
    status, _, err = run("score", "--base", tiny_base, data)
    assert status == 2
    assert "--template" in err


def test_an_adapter_with_one_template_needs_no_taskname(
    run: Run, tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    with_name = run("score", "--base", tiny_base, "--adapter", adapter, questions(tmp_path))
    without = run("score", "--base", tiny_base, "--adapter", adapter, questions(tmp_path, leave_out=["taskname"]))
    assert with_name[0] == 0, with_name[2]
    assert without == with_name


def test_set_changes_how_prompts_are_made(run: Run, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    command = ("score", "--base", tiny_base, "--adapter", adapter, questions(tmp_path))
    plain, without_end = lines(run(*command)[1]), lines(run(*command, "--set", "data.add_eos=False")[1])
    assert [a["answer_tokens"] - 1 for a in plain] == [b["answer_tokens"] for b in without_end]
    status, _, err = run(*command, "--set", "data.add_eso=False")
    assert status == 2
    assert "did you mean 'data.add_eos'?" in err


def test_output_is_written_whole(run: Run, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    command = ("score", "--base", tiny_base, "--adapter", adapter, questions(tmp_path))
    printed = run(*command)[1]
    assert run(*command, "--output", tmp_path / "out.jsonl") == (0, "", "")
    assert (tmp_path / "out.jsonl").read_text() == printed


def test_sampling_depends_on_the_seed(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    command = ("generate", "--base", tiny_base, "--prompt", "Anna lives", "--sample", "--temperature", "5", "--seed")
    assert run(*command, "1") == run(*command, "1")
    assert run(*command, "1") != run(*command, "2")


MISTAKES: Mapping[str, tuple[list[str], str]] = {
    "base_absent": (["--base", "/nowhere/b.nemo"], "/nowhere/b.nemo: no such"),
    "precision": (["--precision", "fp7"], "--precision: unknown precision 'fp7'"),
    "setting": (["--set", "nonsense"], "is not key=value"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_status_2(mistake: str, run: Run, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    arguments, words = MISTAKES[mistake]
    status, out, err = run("score", "--base", tiny_base, "--adapter", adapter, questions(tmp_path), *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


# --- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_tells_base_and_adapter(run: Run, tiny_base: Path, adapter: Path) -> None:
    base = json.loads(run("inspect", tiny_base, "--json")[1])
    assert (base["kind"], base["layout"], base["tokenizer_inside"]) == ("GPT base model", "NeMo mcore", True)
    facts = json.loads(run("inspect", adapter, "--json")[1])
    assert facts["kind"] == "adapter (parallel_adapter)"
    assert facts["base_fingerprint"] == base["fingerprint"]
    assert len(facts["adapters"]) == 4
    status, out, _ = run("inspect", adapter)
    assert status == 0
    assert "linear_in.weight [4, 32]" in out


def test_inspect_tells_shards(run: Run) -> None:
    facts = json.loads(run("inspect", shared_path("oracle/base_gpt_tp2.nemo"), "--json")[1])
    assert facts["weight_files"] == "tensor parallel 2 x pipeline parallel 1"
    assert (
        facts["parameters"]
        == json.loads(run("inspect", shared_path("oracle/base_gpt.nemo"), "--json")[1])["parameters"]
    )
