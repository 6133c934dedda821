# SPDX-License-Identifier: Apache-2.0
"""The estimate at launch equals what the engine counts in the same job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import BatchSampler

from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.launcher.estimate import describe, hidden_bytes
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import AdapterLearning, Ia3Learning
from nemo_launcher.runtime.row_costs import RowCosts
from tests import t5
from tests.engine import squad_records, tiny_gpt_nemo, write_jsonl
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.integration
NUM_7B = 6_738_415_616


def stage_of(config: dict[str, Any], family: str) -> Stage:
    kind = AdapterLearning if "adapter_tuning" in config["model"] else Ia3Learning
    return kind(config, f"{family}/squad", "/data")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT and a T5 whose sizes all differ."""
    from nemo_launcher.conversion.convert import convert

    folder = tmp_path_factory.mktemp("bases")
    convert(t5.save_t5(folder / "t5_hf"), folder / "t5.nemo")
    return {"llama": tiny_gpt_nemo(folder / "gpt.nemo"), "t5": folder / "t5.nemo"}


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.adapter_tuning.type": "linear_adapter"},
        {"model.adapter_tuning.norm_position": "post", "model.adapter_tuning.adapter_dim": 6},
        {"model.adapter_tuning.norm_position": None},
        {"model.adapter_tuning": None},
        {"model.adapter_tuning.layers": "1"},
        {"model.adapter_tuning": None, "model.ia3_tuning.layers": [1]},
    ],
)
def test_as_many_parameters_as_the_engine_trains(bases: dict, tmp_path: Path, family: str, changes: Mapping[str, Any]):
    from nemo_launcher.adapters.injection import AdapterSet
    from nemo_launcher.families.base import load_base

    config = job_config(bases[family], tmp_path, tmp_path, changes)
    base = load_base(bases[family])
    trained = AdapterSet(base.model, base.shape, config["model"]).num_parameters()
    line = describe(stage_of(config, family), LaunchProbe())
    assert line is not None
    assert f" {trained:,} parameters to train" in line


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 2 * 4),
        ({"model.nemo_compat": True}, 2 * 3),
        ({"trainer.max_steps": 5}, 5),
        ({"trainer.max_epochs": -1, "trainer.max_steps": 7}, 7),
        ({"trainer.limit_train_batches": 0.5}, 2 * 2),
        ({"trainer.limit_train_batches": 3}, 2 * 3),
        ({"trainer.limit_train_batches": 3.0}, 2 * 3),
        ({"trainer.limit_train_batches": 1}, 2),
        ({"trainer.limit_train_batches": 1.0}, 2 * 4),
        ({"trainer.limit_train_batches": 0.3, "model.nemo_compat": True}, 0),
        ({"trainer.limit_train_batches": 99, "trainer.max_steps": 5}, 5),
        ({"trainer.max_steps": 99}, 2 * 4),
        ({"model.global_batch_size": 14}, 2),
        ({"model.global_batch_size": 20}, 2),
        ({"trainer.max_epochs": 3, "model.global_batch_size": 5, "trainer.val_check_interval": 2}, 3 * 3),
    ],
)
def test_steps(bases: dict, tmp_path: Path, changes: Mapping[str, Any], steps: int):
    """14 samples in batches of 4, two epochs."""
    records = [json.dumps(record) + "\n" for record in squad_records(14)]
    blank = ["\n", " \t\n", "\r\n"]
    (tmp_path / "squad_train.jsonl").write_text("".join([*blank, *records[:5], *blank, *records[5:], *blank]))
    config = job_config(bases["llama"], tmp_path, tmp_path, changes)
    line = describe(stage_of(config, "llama"), LaunchProbe())
    assert line is not None
    assert line.endswith(f", {steps} steps")
    assert total_steps(config, samples=14) == steps


def total_steps(config: dict[str, Any], samples: int) -> int:
    """Return the steps that a job's model counts (AdapterLearningModel.total_steps)."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel
    from nemo_launcher.training.nemo.trainer import make_trainer

    section = loaded(config).section
    size, compat = section.model.global_batch_size, section.model.nemo_compat
    model = AdapterLearningModel.__new__(AdapterLearningModel)
    torch.nn.Module.__init__(model)
    model.train_loader = BatchSampler(range(samples), size, drop_last=compat)
    model._trainer = make_trainer(section.trainer, [])
    return model.total_steps()


@pytest.mark.parametrize(
    "changes",
    [
        {"model.data.max_dropped_share": 0.5},
        {"exp_manager.create_early_stopping_callback": True},
        {"trainer.max_time": "00:01:00:00"},
    ],
)
def test_steps_that_may_be_fewer(bases: dict, tmp_path: Path, changes: Mapping[str, Any]):
    write_jsonl(tmp_path / "squad_train.jsonl", squad_records(14))
    config = job_config(bases["llama"], tmp_path, tmp_path, changes)
    line = describe(stage_of(config, "llama"), LaunchProbe())
    assert line is not None
    assert line.endswith(", at most 8 steps")


def test_data_prepared_after_the_checks_is_counted(bases: dict, tmp_path: Path):
    """The checks look at the data files before missing ones are prepared."""
    probe, stage = LaunchProbe(), stage_of(job_config(bases["llama"], tmp_path, tmp_path), "llama")
    before = describe(stage, probe)
    write_jsonl(tmp_path / "squad_train.jsonl", squad_records(14))
    after = describe(stage, probe)
    assert before is not None
    assert after is not None
    assert "at most " in before
    assert "steps" not in before
    assert "about " in after
    assert after.endswith(", 8 steps")


def test_steps_of_a_training_that_resumes(bases: dict, tmp_path: Path):
    """Which checkpoint it resumes from is known once the job has read them; the steps are those of all its jobs."""
    write_jsonl(tmp_path / "squad_train.jsonl", squad_records(14))
    config = job_config(bases["llama"], tmp_path, tmp_path)
    checkpoints = Path(config["exp_manager"]["explicit_log_dir"]) / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "a-last.ckpt").touch()
    line = describe(stage_of(config, "llama"), LaunchProbe())
    assert line is not None
    assert line.endswith(", 8 steps in all")


RECOMPUTED = {"activations_checkpoint_granularity": "full", "activations_checkpoint_method": "uniform"}


@pytest.mark.parametrize(
    ("family", "model", "said"),
    [
        ("llama", {}, "08:00"),  # 8 steps of 4 samples in one row
        ("llama", {"adapter_tuning.layers": "1"}, "05:50"),  # the first of two layers runs forward only
        ("llama", {"adapter_tuning.layers": "1", "data.cache_hidden": True}, "04:00"),
        ("llama", RECOMPUTED, "11:41"),
        ("t5", {}, "12:00"),  # 6 steps of 4 samples in two rows
        ("t5", {"adapter_tuning.layers": {"encoder": "1", "decoder": "all"}, "data.cache_hidden": True}, None),
    ],
)
def test_seconds_by_the_costs_that_a_job_has_measured(
    bases: dict, tmp_path: Path, family: str, model: dict, said: str | None, monkeypatch: pytest.MonkeyPatch
):
    """The measurement of a job with adapters in all layers is found again by a process without torch."""
    from nemo_launcher.adapters.injection import AdapterSet
    from nemo_launcher.data.layout import Layout
    from nemo_launcher.families.base import load_base
    from nemo_launcher.training import calibration

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    changes = {f"model.{key}": value for key, value in model.items()}
    if family == "llama":
        write_jsonl(tmp_path / "squad_train.jsonl", squad_records(14))
        config = job_config(bases[family], tmp_path, tmp_path, {"model.data.layout": "auto"} | changes)
    else:
        data = t5.write_data(tmp_path)
        config = OmegaConf.to_container(t5.training_config(bases[family], data, tmp_path, changes), resolve=True)
    before = describe(stage_of(config, family), LaunchProbe())
    base = load_base(bases[family])
    tuning = config["model"]["adapter_tuning"]
    adapters = AdapterSet(base.model, base.shape, config["model"] | {"adapter_tuning": tuning | {"layers": "all"}})
    threads = torch.get_num_threads()
    costs = RowCosts((16, 1024), {threads: (60.0, 60.0)})  # a minute for each row
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: costs)
    layout = Layout.on_cpu(2, threads, 4, stacks=1, is_split=False)
    assert calibration.calibrated_layout(base, layout, adapters.method.name, 1e9).costs == costs
    after = describe(stage_of(config, family), LaunchProbe())
    assert before is not None
    assert after is not None
    assert after.removeprefix(before) == ("" if said is None else f", about {said} for them on this machine")


def unpacked_7b(folder: Path) -> Path:
    """Write the outline of Llama 2 7B in bf16, with a weight file that takes no space; return the folder."""
    config = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "ffn_hidden_size": 11008, "bias": False}
    config |= {"activation": "fast-swiglu", "normalization": "rmsnorm", "position_embedding_type": "rope"}
    config |= {"share_embeddings_and_output_weights": False, "precision": "bf16", "tokenizer": {}}
    folder.mkdir()
    (folder / "model_config.yaml").write_text(json.dumps(config))
    with (folder / "model_weights.ckpt").open("wb") as file:
        file.truncate(2 * NUM_7B)
    return folder


def test_memory_of_a_7b_model(tmp_path: Path):
    """Llama 2 7B in bf16 on GPUs: 12.6 GiB of weights, and at most what 8 samples of 2,048 tokens need."""
    base = unpacked_7b(tmp_path / "base")
    changes = {"model.encoder_seq_length": 2048, "model.micro_batch_size": 8, "model.global_batch_size": 32}
    changes |= {"trainer.precision": "bf16", "trainer.accelerator": "gpu"}
    memory = {}
    for tensor in (1, 4):
        split = {"model.tensor_model_parallel_size": tensor, "trainer.devices": tensor}
        line = describe(stage_of(job_config(base, tmp_path, tmp_path, changes | split), "llama"), LaunchProbe())
        assert line is not None
        memory[tensor] = float(line.split("at most ")[1].split(" GiB of memory on each GPU")[0])
    # norms, attention (queries, keys, values, and again queries, keys and the output), feed-forward, two adapters
    elements = 2 * 4096 + 6 * 4096 + 2 * 11008 + 2 * (2 * 4096 + 2 * 4)
    # working memory of a layer's backward pass is more than the logits, which are in memory in parts
    tokens, working = 8 * 2048, 2 * 5 * 11008
    expected = 2 * NUM_7B + tokens * (32 * elements * 2 + working)
    assert memory[1] == pytest.approx(expected / 2**30, rel=0.02)
    assert memory[4] < 0.6 * memory[1]


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path):
    config = job_config(tmp_path / "no.nemo", tmp_path, tmp_path)
    assert describe(stage_of(config, "llama"), LaunchProbe()) is None


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("precision", [32, "bf16"])
def test_hidden_states_need_about_as_much_room(bases: dict, tmp_path: Path, family: str, precision: Any):
    """Compared with the tokens that the engine counts; a validation file is as long as the training file."""
    from nemo_launcher.data.prompts import encode_files
    from nemo_launcher.data.templates import TaskTemplate
    from nemo_launcher.data.token_rows import TokenRows
    from nemo_launcher.families.base import load_base

    records = [json.dumps(record) + "\n" for record in squad_records(40)]
    for name in ("train", "val"):
        (tmp_path / f"squad_{name}.jsonl").write_text("".join(records))
    changes = {"model.data.cache_hidden": True, "model.adapter_tuning.layers": "1", "trainer.precision": precision}
    changes["model.data.decoder_starts_with_pad"] = family == "t5"
    stage = stage_of(job_config(bases[family], tmp_path, tmp_path, changes), family)
    base, model = load_base(bases[family]), stage.section.model
    encoder = base.family.prompt_encoder(base.tokenizer, base.shape, PromptSettings.of_training(model.data))
    templates = [TaskTemplate.from_config(vars(template)) for template in model.task_templates]
    paths = [*model.data.train_ds, *model.data.validation_ds]
    tables = [
        TokenRows(encode_files([path], templates, encoder, max_dropped_share=0.0), is_causal=family == "llama")
        for path in paths
    ]
    needed = sum(rows.num_rows for rows in tables) * base.shape.hidden_size * (4 if precision == 32 else 2)

    estimated = hidden_bytes(stage, LaunchProbe())

    assert estimated is not None
    assert needed / 1.5 < estimated < needed * 1.5
    assert "less than 0.1 GiB of hidden states on the disk" in (describe(stage, LaunchProbe()) or "")
