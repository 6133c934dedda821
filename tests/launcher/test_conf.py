# SPDX-License-Identifier: Apache-2.0
"""Every file below conf/ composes, matches its schema, and has the documented values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters import CLUSTERS, registry
from nemo_launcher.config import resolvers
from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.config.fields import stays_out
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections import TopLevel
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.launcher.compose import MISSING
from nemo_launcher.places import CONF

pytestmark = pytest.mark.unit

FILES = sorted(str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml"))
HUGGING_FACE_MODEL = [
    "conversion_hf2nemo.run.model_train_name=my_model",
    "conversion_hf2nemo.model.hf_model_path=/my/model",
]
REQUIRED = {f"conversion_hf2nemo/{name}": HUGGING_FACE_MODEL for name in ("hf", "hf_gpt", "hf_t5")}
SHARED = [name for name in FILES if name.startswith("base/")]
"""Files that choices inherit from; never chosen themselves."""
TASKS = [name.removeprefix("task/") for name in FILES if name.startswith("task/")]
"""Files that are added to a choice of stages: +task=boolq."""
PRESETS = [name for name in FILES if name.startswith("preset/")]
"""Files that change the chosen ones: +preset=small."""
ADDED = (*PRESETS, *(f"task/{name}" for name in TASKS))
CHOICES = [name for name in FILES if "/" in name and name not in (*SHARED, *ADDED)]


def compose(config_name: str, *overrides: str):
    """Return a composed configuration."""
    resolvers.register()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = hydra.compose(config_name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_fits_its_schema(name: str):
    group, _, choice = name.partition("/")
    section = compose("config", f"{group}={choice}", *REQUIRED.get(name, []))[group]
    schema = CLUSTERS[choice].section if group == "cluster" else STAGES[group]
    assert check(OmegaConf.to_container(section, resolve=True), schema, group) == []


def test_every_dataset_but_the_default_is_a_task():
    assert sorted(TASKS) == sorted(set(DATASETS) - {"squad"})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_fits_the_stages_and_its_files(name: str):
    config = compose("config", f"+task={name}")
    for stage in ("adapter_learning", "ia3_learning", "evaluation"):
        section = OmegaConf.to_container(config[stage], resolve=True)
        assert check(section, STAGES[stage], stage) == []
        assert section["run"]["task_name"] == name
    for stage in ("adapter_learning", "ia3_learning"):
        model, dataset = OmegaConf.to_container(config[stage].model, resolve=True), DATASETS[name]
        (template,) = [TaskTemplate.from_config(template) for template in model["task_templates"]]
        assert (template.taskname, model["new_tasks"]) == (name, [name])
        named = [Path(path).name for path in (*model["data"]["train_ds"], *model["data"]["validation_ds"])]
        assert named == [dataset.train, dataset.validation]
    evaluated = [*config.evaluation.data_paths, config.evaluation.ground_truth_file_path]
    assert [Path(path).name for path in evaluated] == [dataset.test, dataset.ground_truth]


def test_what_choices_share_stands_in_one_file():
    """Files of Adapter Learning and IA3 hold only their own values; common keys are in conf/base."""
    for adapter, ia3 in (
        ("adapter_learning/gpt3", "ia3_learning/gpt3"),
        ("evaluation/adapter_gpt3", "evaluation/ia3_gpt3"),
    ):
        first, second = (dict(_leaves(OmegaConf.load(CONF / f"{name}/squad.yaml"))) for name in (adapter, ia3))
        assert [key for key in first.keys() & second.keys() if first[key] == second[key]] == []


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in OmegaConf.to_container(config).items() if OmegaConf.is_config(config) else config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value


def keys_of(value: Any, prefix: str = "") -> Iterator[str]:
    """Return the dotted keys of a configuration, with keys of list entries once."""
    for entry in value if isinstance(value, list) else [value]:
        for key, item in entry.items() if isinstance(entry, dict) else ():
            yield f"{prefix}{key}"
            yield from keys_of(item, f"{prefix}{key}.")


def keys_wanted(schema: type, prefix: str = "") -> Iterator[str]:
    """Return the dotted keys of a schema, except optional keys and keys below them."""
    for field in dataclasses.fields(schema):
        if stays_out(field):
            continue
        yield f"{prefix}{field.name}"
        for part in parts_of(typing.get_type_hints(schema)[field.name]):
            if dataclasses.is_dataclass(part):
                yield from keys_wanted(part, f"{prefix}{field.name}.")


def parts_of(kind: Any) -> Iterator[Any]:
    """Return a type and the types in it."""
    yield kind
    for part in typing.get_args(kind):
        yield from parts_of(part)


@pytest.mark.parametrize("group", [*STAGES, "cluster"])
def test_every_key_of_a_schema_is_in_a_file(group: str):
    """Files thus show all settings; test_every_choice_fits_its_schema is the converse."""
    names = [name for name in CHOICES if name.startswith(f"{group}/")]
    assert names
    found: set[str] = set()
    for name in names:
        section = compose("config", name.replace("/", "=", 1), *REQUIRED.get(name, []))[group]
        found |= set(keys_of(OmegaConf.to_container(section, resolve=True)))
    schemas = [schema for _, schema in registry.sections()] if group == "cluster" else [STAGES[group]]
    assert [key for schema in schemas for key in keys_wanted(schema) if key not in found] == []


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
def test_the_top_level_fits_its_schema(name: str):
    config = compose(name)
    own = {
        key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in config
        if key not in ("hydra", "stages", "cluster_type", "cluster", *STAGES)
    }
    assert check(own, TopLevel, "") == []
    assert [key for key in keys_wanted(TopLevel) if key not in set(keys_of(own))] == []


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
def test_every_configuration_composes_with_sound_stages(name: str):
    config = compose(name)
    for stage in config.stages:
        section = OmegaConf.to_container(config[stage], resolve=True)
        assert check(section, STAGES[stage], stage) == []
        assert MISSING not in str(section)


@pytest.mark.parametrize("name", ["quickstart", "quickstart_ia3"])
def test_quickstart_stages_fit_together(name: str, tmp_path: Path):
    config = compose(name, f"base_results_dir={tmp_path}")
    learning = config[config.stages[1]]
    assert (
        config.conversion_hf2nemo.model.nemo_path == f"{tmp_path}/quickstart/convert_nemo/results/megatron_llama.nemo"
    )
    assert learning.model.language_model_path == config.conversion_hf2nemo.model.nemo_path
    assert config.evaluation.language_model_path == config.conversion_hf2nemo.model.nemo_path
    assert config.evaluation.adapter_model_file == learning.model.nemo_path
    assert config.evaluation.summary_path == f"{tmp_path}/{name}/summary.json"
    assert config.evaluation.training_summary_path == f"{learning.exp_manager.explicit_log_dir}/training_summary.json"
    assert learning.model.data.train_ds == [f"{tmp_path}/quickstart/data/squad_train.jsonl"]


def test_documented_defaults():
    config = compose("config")
    assert config.stages == ["adapter_learning"]
    assert config.adapter_learning.run.results_dir.endswith("launcher_scripts/results/gpt3_5b/adapter_learning_squad")
    for stage in ("adapter_learning", "ia3_learning"):
        assert config[stage].model.optim.lr == "auto"
        assert config[stage].model.optim.sched.warmup_steps == "auto"
    assert "adapter_tuning" not in config.ia3_learning.model
    assert config.adapter_learning.model.model_parallel_size == 1


def test_resolvers():
    resolvers.register()
    config = OmegaConf.create({"a": "${multiply:3,4}", "b": "${divide_ceil:7,2}", "c": "${divide_floor:7,2}"})
    assert OmegaConf.to_container(config, resolve=True) == {"a": 12, "b": 4, "c": 3}
