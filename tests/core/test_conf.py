"""Every file below conf/ composes, fits its schema, and keeps the documented values."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nemo_launcher.core import resolvers
from nemo_launcher.core.compose import CONF, MISSING
from nemo_launcher.core.schema import check
from nemo_launcher.core.sections import Cluster
from nemo_launcher.core.stages import STAGES

pytestmark = pytest.mark.unit

FILES = sorted(str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml"))
HUGGING_FACE_MODEL = [
    "conversion_hf2nemo.run.model_train_name=my_model",
    "conversion_hf2nemo.model.hf_model_path=/my/model",
]
REQUIRED = {f"conversion_hf2nemo/{name}": HUGGING_FACE_MODEL for name in ("hf", "hf_gpt", "hf_t5")}
CHOICES = [name for name in FILES if "/" in name]


def compose(config_name: str, *overrides: str):
    """A composed configuration."""
    resolvers.register()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = hydra.compose(config_name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_fits_its_schema(name: str):
    group, _, choice = name.partition("/")
    section = compose("config", f"{group}={choice}", *REQUIRED.get(name, []))[group]
    schema = Cluster if group == "cluster" else STAGES[group].schema
    assert check(OmegaConf.to_container(section, resolve=True), schema, group) == []


@pytest.mark.parametrize("name", [name for name in FILES if "/" not in name])
def test_every_configuration_composes_with_sound_stages(name: str):
    config = compose(name)
    for stage in config.stages:
        section = OmegaConf.to_container(config[stage], resolve=True)
        assert check(section, STAGES[stage].schema, stage) == []
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
    assert config.adapter_learning.model.optim.lr == 1e-4
    assert config.ia3_learning.model.optim.lr == 5e-3
    assert "adapter_tuning" not in config.ia3_learning.model
    assert config.adapter_learning.model.model_parallel_size == 1


def test_resolvers():
    resolvers.register()
    config = OmegaConf.create({"a": "${multiply:3,4}", "b": "${divide_ceil:7,2}", "c": "${divide_floor:7,2}"})
    assert OmegaConf.to_container(config, resolve=True) == {"a": 12, "b": 4, "c": 3}
