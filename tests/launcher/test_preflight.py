# SPDX-License-Identifier: Apache-2.0
"""Preflight checks of files: bases, adapters, data and the disk; problems are reported by key before anything runs."""

from __future__ import annotations

import gzip
import json
import os
import random
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest

from nemo_launcher.checkpoint import outline
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.sources import source_problem
from tests.archives import ADAPTER, GPT, write_base
from tests.hugging_face import write_folder
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

SECTION = {key: GPT[key] for key in ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")}

T5 = {"encoder": SECTION, "decoder": SECTION, "max_position_embeddings": 512, "tokenizer": GPT["tokenizer"]}

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
    monkeypatch.setattr(outline, "MAX_UNPACKED_BYTES", 100_000)
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
    assert "you may not read" in launch(*workplace.arguments).err


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
    assert all(word in error for word in (key, "quantized by gptq", "holds no tokenizer"))
    write_folder(model)
    assert launch(*arguments, f"{key}={model}").status == 0
    inside = launch(*arguments, f"{key}={model}", f"conversion_hf2nemo.model.nemo_path={model}/base.nemo").err
    assert "is inside the folder to be converted" in inside


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
    assert f"{workplace.root} has 0 MiB free, adapter_learning needs about 1 MiB" in result.err


@pytest.mark.usefixtures("real_data")
def test_records_that_the_template_does_not_fit(launch: Launch, workplace: Workplace):
    data = workplace.root / "mine.jsonl"
    data.write_text(json.dumps({"taskname": "squad", "context": "c", "qestion": "q", "answer": " "}) + "\n")
    files = [f"adapter_learning.model.data.{key}=[{data}]" for key in ("train_ds", "validation_ds")]
    result = launch(*workplace.arguments, *files)
    assert f"{data}:1: no field 'question'" in result.err
    assert "did you mean 'qestion'?" in result.err
    assert f"{data}:1: field 'answer' is empty" in result.err


def test_a_base_that_cannot_be_divided_comes_with_sizes_that_divide_it(launch: Launch, workplace: Workplace):
    base = write_base(workplace.root / "mine.nemo", GPT | {"num_query_groups": 2})
    sizes = ["adapter_learning.trainer.devices=4", "adapter_learning.model.tensor_model_parallel_size=4"]
    result = launch(*workplace.arguments, *sizes, f"adapter_learning.model.language_model_path={base}")
    assert "use a divisor of 2, such as 2" in result.err, result.err


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


def test_prompts_that_the_base_does_not_take(launch: Launch, workplace: Workplace):
    write_base(workplace.base_model, GPT | {"encoder_seq_length": 64})
    key = "adapter_learning.model.encoder_seq_length"
    told = launch(*workplace.arguments, f"{key}=128", "debug=True")
    assert told.status == 0
    assert f"-> {key}=64" in told.err
    assert launch(*workplace.arguments, f"{key}=64", "debug=True").err == ""
