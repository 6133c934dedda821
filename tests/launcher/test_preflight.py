# SPDX-License-Identifier: Apache-2.0
"""Preflight checks of files: bases, adapters, data and the disk; problems are reported by key before anything runs."""

from __future__ import annotations

import gzip
import json
import os
import random
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.checkpoint import outline
from nemo_launcher.checkpoint.archive import write_archive
from nemo_launcher.checkpoint.sources import source_problem
from tests.archives import GPT, write_base
from tests.hugging_face import write_folder
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
SECTION = {key: GPT[key] for key in ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")}
T5 = {"encoder": SECTION, "decoder": SECTION, "max_position_embeddings": 512, "tokenizer": GPT["tokenizer"]}
ADAPTER = {"language_model_path": "/base.nemo", "adapter_tuning": {"adapter_dim": 16}}
KEY = "adapter_learning.model.language_model_path (command line): "


@pytest.mark.parametrize(
    ("config", "without", "arguments", "where", "what"),
    [
        (GPT, "model_weights.ckpt", [], KEY, "holds no model_weights.ckpt"),
        (GPT, "tokenizer.model", [], KEY, "tokenizer.model: is absent from the archive"),
        (GPT | {"tokenizer": {"library": "huggingface", "type": "gpt-x"}}, "", [], KEY, "carries no tokenizer"),
        (GPT | {"num_layers": None}, "", [], KEY, "num_layers: is absent from the base's model_config.yaml"),
        (GPT | {"num_attention_heads": 7}, "", [], KEY, "64 does not divide by num_attention_heads 7"),
        (T5, "", [], KEY, "is a T5 model, but adapter_learning=gpt3/squad is for Megatron GPT"),
        (
            GPT,
            "",
            ["adapter_learning=t5/squad"],
            KEY,
            "is a GPT model, but adapter_learning=t5/squad is for",
        ),
        (ADAPTER, "", [], KEY, "is an adapter, not a base model"),
        (GPT, "", ["tensor_model_parallel_size=3"], "tensor", "3 does not divide the model's num_attention_heads 8"),
        (GPT | {"num_query_groups": 2}, "", ["tensor_model_parallel_size=4"], "tensor", "num_query_groups 2"),
        (GPT | {"ffn_hidden_size": 250}, "", ["tensor_model_parallel_size=4"], "tensor", "ffn_hidden_size 250"),
        (GPT, "", ["pipeline_model_parallel_size=3"], "pipeline", "3 does not divide the model's num_layers 4"),
        (
            T5,
            "",
            ["adapter_learning=t5/squad", "pipeline_model_parallel_size=6"],
            "pipeline",
            "the encoder's num_layers 4",
        ),
    ],
)
def test_a_base_that_cannot_work(
    launch: Launch, workplace: Workplace, config: dict, without: str, arguments: list[str], where: str, what: str
):
    base = write_base(workplace.root / "mine.nemo", config, without=without)
    sizes = [f"adapter_learning.model.{a}" for a in arguments if "parallel" in a]
    choice = [a for a in arguments if "parallel" not in a]
    devices = ["adapter_learning.trainer.devices=12", "adapter_learning.model.global_batch_size=384"]
    result = launch(
        *workplace.arguments,
        *choice,
        *sizes,
        *devices,
        "adapter_learning.model.adapter_tuning.adapter_dim=12",
        f"adapter_learning.model.language_model_path={base}",
        "adapter_learning.model.micro_batch_size=1",
    )
    assert result.status == 2, result.err
    assert what in result.err
    assert (where if where == KEY else f"adapter_learning.model.{where}_model_parallel_size") in result.err
    assert str(base) in result.err
    assert not workplace.results.exists()


def test_an_archive_that_was_cut_short(launch: Launch, workplace: Workplace):
    whole = workplace.base_model.read_bytes()
    workplace.base_model.write_bytes(whole[:2000])
    result = launch(*workplace.arguments)
    assert result.status == 2
    assert "is truncated" in result.err


def compressed(path: Path, padding: int = 0) -> Path:
    """Compress an archive with `padding` bytes of incompressible weights after its configuration."""
    plain = path.with_suffix(".tar")
    weights = random.Random(0).randbytes(padding)
    write_archive(plain, GPT | {"num_layers": 5}, {"model_weights.ckpt": weights, "tokenizer.model": b"t"})
    with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target)
    return path


def test_of_a_compressed_archive_only_the_beginning_is_unpacked(
    launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outline, "LOOKED_AT", 100_000)
    path = compressed(workplace.base_model, padding=1_000_000)
    path.write_bytes(path.read_bytes()[:200_000])  # later content is not read
    size = "adapter_learning.model.pipeline_model_parallel_size=2"
    result = launch(*workplace.arguments, size, "adapter_learning.trainer.devices=2")
    assert "2 does not divide the model's num_layers 5" in result.err
    assert "cut short" not in result.err


@pytest.mark.parametrize("cut", [0, 1])
def test_a_small_compressed_archive_is_read_whole(launch: Launch, workplace: Workplace, cut: int):
    path = compressed(workplace.base_model)
    path.write_bytes(path.read_bytes()[: -40 * cut or None])
    result = launch(*workplace.arguments, "debug=True")
    assert ("is truncated" in result.err) == bool(cut), result.err


def test_an_unpacked_archive_is_a_base_too(launch: Launch, workplace: Workplace):
    folder = workplace.root / "unpacked"
    with tarfile.open(workplace.base_model) as tar:
        tar.extractall(folder, filter="data")
    base = f"adapter_learning.model.language_model_path={folder}"
    assert launch(*workplace.arguments, base, "debug=True").status == 0
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model: is absent" in launch(*workplace.arguments, base, "debug=True").err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_base_that_may_not_be_read(launch: Launch, workplace: Workplace):
    workplace.base_model.chmod(0)
    assert "may not be read by you" in launch(*workplace.arguments).err


def test_what_an_earlier_stage_makes_is_left_to_the_job(launch: Launch, workplace: Workplace):
    """Even if a damaged file of an earlier run exists."""
    model = workplace.root / "hf"
    write_folder(model)
    made = workplace.results / "my_model/convert_nemo/results/megatron_llama.nemo"
    arguments = [
        *workplace.arguments[:2],
        *workplace.arguments[3:],
        "stages=conversion_hf2nemo,adapter_learning",
        "conversion_hf2nemo=hf",
        f"conversion_hf2nemo.model.hf_model_path={model}",
        "conversion_hf2nemo.run.model_train_name=my_model",
        f"adapter_learning.model.language_model_path={made}",
        "debug=True",
    ]
    assert launch(*arguments).status == 0
    made.parent.mkdir(parents=True, exist_ok=True)
    write_base(made, GPT | {"converted_from": {"file": "hf"}})
    made.write_bytes(made.read_bytes()[:2048])
    assert launch(*arguments).status == 0
    made.write_text("somebody's")
    assert "was not made by a conversion" in launch(*arguments).err
    made.unlink()
    (model / "config.json").unlink()
    assert "holds no config.json" in launch(*arguments).err


def test_what_a_conversion_cannot_read_is_told_at_launch(launch: Launch, workplace: Workplace):
    model = write_folder(workplace.root / "hf", quantization_config={"quant_method": "gptq"})
    (model / "tokenizer.json").unlink()
    stage = ["stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "conversion_hf2nemo.run.model_train_name=m"]
    key = "conversion_hf2nemo.model.hf_model_path"
    arguments = [*workplace.arguments[:2], *stage, "debug=True"]
    error = launch(*arguments, f"{key}={model}").err
    assert all(word in error for word in (key, "quantised by gptq", "holds no tokenizer"))
    write_folder(model)
    assert launch(*arguments, f"{key}={model}").status == 0
    inside = launch(*arguments, f"{key}={model}", f"conversion_hf2nemo.model.nemo_path={model}/base.nemo").err
    assert "lies in the folder that is to be converted" in inside


@pytest.mark.parametrize("name", ["my model", "it's", "a,b=c", "plain-1.0", "{x}", "back\\slash"])
def test_a_model_to_be_converted_given_as_base_gets_the_command(name: str, launch: Launch, workplace: Workplace):
    """The command is parsed like in a shell, and accepted."""
    folder = write_folder(workplace.root / name)
    problem = source_problem(folder)
    assert problem is not None
    assert "is a Hugging Face folder" in problem.what
    command = shlex.split(problem.fix.removeprefix("convert it first: "))
    assert command[:2] == ["python3", "main.py"]
    assert launch(*workplace.arguments[:2], *command[2:], "debug=True").err == ""
    base = f"adapter_learning.model.language_model_path={_text(str(folder))}"
    err = launch(*workplace.arguments, base).err
    assert problem.fix in err, err


def _text(value: str) -> str:
    """Return a text without quotes, quoted for Hydra."""
    return "'" + value.replace("'", "\\'") + "'"


def test_an_adapter_that_is_none(launch: Launch, workplace: Workplace):
    restore = f"adapter_learning.model.restore_path={workplace.base_model}"
    result = launch(*workplace.arguments, restore)
    assert "is a base model, not an adapter" in result.err
    adapter = write_base(workplace.root / "adapter.nemo", ADAPTER)
    assert launch(*workplace.arguments, restore.replace("base.nemo", adapter.name), "debug=True").status == 0


def test_the_adapter_that_a_training_began_with_may_go(launch: Launch, workplace: Workplace):
    """Its progress is in the checkpoints."""
    adapter = write_base(workplace.root / "adapter.nemo", ADAPTER)
    arguments = [*workplace.arguments, f"adapter_learning.model.restore_path={adapter}"]
    assert launch(*arguments, "debug=True").status == 0
    adapter.unlink()
    assert f"{adapter} does not exist" in launch(*arguments, "debug=True").err
    folder = next(workplace.results.rglob("*_hydra.yaml")).parent
    (folder / "results/checkpoints").mkdir(parents=True)
    (folder / "results/checkpoints/a-last.ckpt").write_text("")
    result = launch(*arguments, "debug=True")
    assert result.status == 0, result.err


def test_a_full_disk(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(workplace.root)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = launch(*workplace.arguments, "adapter_learning.exp_manager.checkpoint_callback_params.save_top_k=2")
    assert result.status == 2
    assert f"{workplace.root} has 0 MiB free, adapter_learning will leave about 1 MiB" in result.err


@pytest.mark.usefixtures("real_data")
def test_records_that_the_template_does_not_fit(launch: Launch, workplace: Workplace):
    data = workplace.root / "mine.jsonl"
    data.write_text(json.dumps({"taskname": "squad", "context": "c", "qestion": "q", "answer": " "}) + "\n")
    files = [f"adapter_learning.model.data.{key}=[{data}]" for key in ("train_ds", "validation_ds")]
    result = launch(*workplace.arguments, *files)
    assert f"{data}:1: no field 'question'" in result.err
    assert "did you mean 'qestion'?" in result.err
    assert f"{data}:1: field 'answer' is empty" in result.err


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("trained", [True, False])
def test_questions_that_the_adapter_was_not_trained_for(launch: Launch, workplace: Workplace, trained: bool):
    """The adapter exists already, or an earlier stage of this launch trains it."""
    data = workplace.root / "mine.jsonl"
    data.write_text(json.dumps({"taskname": "squad", "title": "t", "question": "q"}) + "\n")
    templates = [{"taskname": "squad", "prompt_template": "{context} {question} {answer}", "answer_field": "answer"}]
    adapter = write_base(workplace.root / "adapter.nemo", ADAPTER | {"task_templates": templates})
    fine = workplace.root / "fine.jsonl"
    fine.write_text(json.dumps({"taskname": "squad", "context": "c", "question": "q", "answer": "a"}) + "\n")
    training = [f"adapter_learning.model.data.{key}=[{fine}]" for key in ("train_ds", "validation_ds")]
    files = [f"evaluation.data_paths=[{data}]", f"evaluation.ground_truth_file_path={data}"]
    chosen = [f"evaluation.adapter_model_file={adapter}", "stages=evaluation"]
    result = launch(
        *workplace.arguments,
        *training,
        *files,
        *(chosen if trained else ["stages=[adapter_learning,evaluation]"]),
        f"evaluation.language_model_path={workplace.base_model}",
        "debug=True",
    )
    assert result.err.startswith("2 mistakes;"), result.err
    assert f"evaluation.data_paths (command line): {data}:1: no field 'context'" in result.err
    assert f"evaluation.ground_truth_file_path (command line): {data}:1: has no 'answer'" in result.err


def test_a_base_that_cannot_be_divided_comes_with_sizes_that_divide_it(launch: Launch, workplace: Workplace):
    base = write_base(workplace.root / "mine.nemo", GPT | {"num_query_groups": 2})
    sizes = ["adapter_learning.trainer.devices=4", "adapter_learning.model.tensor_model_parallel_size=4"]
    result = launch(*workplace.arguments, *sizes, f"adapter_learning.model.language_model_path={base}")
    assert "use a divisor of 2, such as 2" in result.err, result.err


def test_an_evaluation_is_told_of_the_base_that_the_training_names(launch: Launch, workplace: Workplace):
    base = f"adapter_learning.model.language_model_path={workplace.base_model}"
    absent = "evaluation.language_model_path=/no/base.nemo"
    result = launch(*workplace.arguments, "stages=[adapter_learning,evaluation]", base, absent)
    assert f"evaluation.language_model_path={workplace.base_model}" in result.err


def test_answers_that_are_absent_may_be_those_of_the_questions(launch: Launch, workplace: Workplace):
    absent = ["evaluation.run.task_name=mine", "evaluation.ground_truth_file_path=/no/answers.jsonl"]
    result = launch(*workplace.arguments, "stages=[adapter_learning,evaluation]", *absent)
    assert "data file /no/answers.jsonl does not exist" in result.err
    assert "evaluation.ground_truth_file_path=null" in result.err


@pytest.fixture
def real_data(prepared: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the data modules themselves instead of their stand-ins."""
    for name in ("jsonl", "squad"):
        monkeypatch.delitem(sys.modules, f"nemo_launcher.data.{name}")


MISSING = "adapter_learning.model.language_model_path=/only/on/the/nodes.nemo"


def test_files_that_only_the_nodes_see(launch: Launch, workplace: Workplace):
    assert launch(*workplace.arguments, MISSING, "debug=True").status == 2
    warned = launch(*workplace.arguments, MISSING, "debug=True", "preflight=warn")
    assert warned.status == 0
    assert "warning: adapter_learning.model.language_model_path (command line): Megatron GPT base model" in warned.err
    silent = launch(*workplace.arguments, MISSING, "debug=True", "preflight=off")
    assert (silent.status, silent.err) == (0, "")


@pytest.mark.parametrize("mode", ["error", "warn", "off"])
def test_the_configuration_is_always_checked(launch: Launch, workplace: Workplace, mode: str):
    wrong = "adapter_learning.model.global_batch_size=7"
    result = launch(*workplace.arguments, wrong, f"preflight={mode}")
    assert result.status == 2
    assert "global_batch_size" in result.err


def test_off_as_yaml_reads_it(launch: Launch, workplace: Workplace):
    assert launch(*workplace.arguments, MISSING, "debug=True", "preflight=false").status == 0


@pytest.mark.parametrize("right", ["adapter", "ia3"])
def test_an_evaluation_of_another_method(right: str, launch: Launch, workplace: Workplace):
    adapter = workplace.root / "trained.nemo"
    tuning = {"adapter_tuning": {"type": "parallel_adapter", "adapter_dim": 4}} if right == "adapter" else {}
    write_archive(adapter, {"language_model_path": str(workplace.base_model), **tuning}, {"model_weights.ckpt": b"x"})
    (workplace.root / "test.jsonl").write_text('{"taskname": "squad", "context": "c", "question": "q"}\n')
    arguments = [
        *workplace.arguments[:2],
        "stages=[evaluation]",
        f"evaluation.language_model_path={workplace.base_model}",
        f"evaluation.adapter_model_file={adapter}",
        f"evaluation.data_paths=[{workplace.root}/test.jsonl]",
        "evaluation.ground_truth_file_path=null",
        "evaluation.trainer.accelerator=cpu",
        "evaluation.trainer.devices=1",
        "debug=True",
    ]
    wrong = {"adapter": "ia3", "ia3": "adapter"}[right]
    told = launch(*arguments, f"evaluation={wrong}_gpt3/squad")
    assert told.status == 2
    assert f"-> evaluation={right}_gpt3/squad" in told.err
    accepted = launch(*arguments, f"evaluation={right}_gpt3/squad")
    assert accepted.status == 0, accepted.err
    (config,) = workplace.results.rglob("eval_*_hydra.yaml")
    assert f"method: {right}\n" in config.read_text()  # the job checks the file that exists then


@pytest.mark.parametrize("right", ["adapter", "ia3"])
def test_an_evaluation_of_what_a_stage_of_the_other_method_makes(right: str, launch: Launch, workplace: Workplace):
    adapter = workplace.root / "out/trained.nemo"
    learning = f"{right}_learning"
    arguments = [
        *workplace.arguments[:2],
        f"stages=[{learning},evaluation]",
        f"{learning}.model.language_model_path={workplace.base_model}",
        f"{learning}.model.nemo_path={adapter}",
        f"{learning}.trainer.devices=1",
        f"{learning}.trainer.accelerator=cpu",
        f"evaluation.language_model_path={workplace.base_model}",
        f"evaluation.adapter_model_file={adapter}",
        "evaluation.trainer.accelerator=cpu",
        "debug=True",
    ]
    wrong = {"adapter": "ia3", "ia3": "adapter"}[right]
    told = launch(*arguments, f"evaluation={wrong}_gpt3/squad")
    assert told.status == 2
    assert f"{adapter} will hold" in told.err
    assert f"-> evaluation={right}_gpt3/squad" in told.err
    accepted = launch(*arguments, f"evaluation={right}_gpt3/squad")
    assert accepted.status == 0, accepted.err


@pytest.mark.parametrize("trained", ["squad", "unlike"])
def test_an_adapter_that_is_not_there(trained: str, launch: Launch, workplace: Workplace):
    """The task's name is misspelled, or no such adapter was trained."""
    adapter = workplace.results / f"gpt3_5b/adapter_learning_{trained}/results/megatron_gpt_adapter.nemo"
    adapter.parent.mkdir(parents=True)
    write_archive(adapter, ADAPTER, {"model_weights.ckpt": b"x"})
    base = f"evaluation.language_model_path={workplace.base_model}"
    told = launch(*workplace.arguments, "stages=evaluation", base, "evaluation.run.task_name=sqaud", "debug=True")
    (told_of,) = [part for part in told.err.split("\n\n") if part.startswith("evaluation.adapter_model_file ")]
    name = f"evaluation.adapter_model_file={adapter}"
    assert told_of.rpartition("-> ")[2].strip().endswith(name if trained == "squad" else "evaluation]"), told.err


def test_a_summary_of_another_kind_is_refused_at_launch(launch: Launch, workplace: Workplace):
    (workplace.root / "progress.json").write_text('{"step": 1, "max_steps": 2}')
    (workplace.root / "training_summary.json").write_text('{"trainable_parameters": 5}')
    key = "evaluation.training_summary_path"
    arguments = [
        *workplace.arguments,
        "stages=[adapter_learning,evaluation]",
        f"evaluation.language_model_path={workplace.base_model}",
        "evaluation.trainer.accelerator=cpu",
        "debug=True",
    ]
    told = launch(*arguments, f"{key}={workplace.root}/progress.json")
    assert told.status == 2
    assert f"-> {key}={workplace.root}/training_summary.json; or none: {key}=null" in told.err
    accepted = launch(*arguments, f"{key}={workplace.root}/training_summary.json")
    assert accepted.status == 0, accepted.err


def test_prompts_that_the_base_does_not_take(launch: Launch, workplace: Workplace):
    write_base(workplace.base_model, GPT | {"encoder_seq_length": 64})
    key = "adapter_learning.model.encoder_seq_length"
    told = launch(*workplace.arguments, f"{key}=128", "debug=True")
    assert told.status == 0
    assert f"-> {key}=64" in told.err
    assert launch(*workplace.arguments, f"{key}=64", "debug=True").err == ""
