# SPDX-License-Identifier: Apache-2.0
"""Multirun: a name and a folder per run, all mistakes in one report, and work that grows linearly with the runs."""

from __future__ import annotations

import cProfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hugging_face import write_folder
from tests.workplace import REPOSITORY, Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
DIM = "adapter_learning.model.adapter_tuning.adapter_dim"


def configs(workplace: Workplace) -> dict[str, dict[str, Any]]:
    """Return every job's configuration, by its path below the results."""
    files = sorted(workplace.results.rglob("*_hydra.yaml"))
    return {str(file.relative_to(workplace.results)): yaml.safe_load(file.read_text()) for file in files}


def test_the_documented_sweep(launch: Launch, workplace: Workplace):
    result = launch("-m", *workplace.arguments, f"{DIM}=8,16,32", f"data_dir={workplace.root}")
    assert result.status == 0, result.err
    found = configs(workplace)
    names = {dim: f"squad_gpt3_5b_adapter_dim_{dim}" for dim in (8, 16, 32)}
    folders = {dim: f"gpt3_5b/adapter_learning_squad_adapter_dim_{dim}" for dim in names}
    assert set(found) == {f"{folders[dim]}/{names[dim]}_hydra.yaml" for dim in names}
    for dim, folder in folders.items():
        config = found[f"{folder}/{names[dim]}_hydra.yaml"]
        assert config["model"]["adapter_tuning"]["adapter_dim"] == dim
        assert config["exp_manager"]["explicit_log_dir"] == f"{workplace.results}/{folder}/results"
        assert config["exp_manager"]["wandb_logger_kwargs"]["name"] == names[dim]
        assert (workplace.results / folder / "results/megatron_gpt_adapter.nemo").is_file()
    assert "run 2 of 3: adapter_dim=16" in result.out


def test_a_later_stage_reads_what_its_own_run_has_made(launch: Launch, workplace: Workplace):
    base = f"evaluation.language_model_path={workplace.base_model}"
    sweep = [f"{DIM}=8,16", "evaluation.inference.top_k=0,5", "stages=[adapter_learning,evaluation]"]
    result = launch("-m", *workplace.arguments, base, *sweep, "debug=True")
    assert result.status == 0, result.err
    found = configs(workplace)
    training = [path for path in found if "eval" not in path]
    assert len(training) == 2  # trained once, evaluated twice
    evaluations = {path: config for path, config in found.items() if "eval" in path}
    assert len(evaluations) == 4
    for path, config in evaluations.items():
        dim = 16 if "adapter_dim_16" in path else 8
        folder = f"{workplace.results}/gpt3_5b/adapter_learning_squad_adapter_dim_{dim}"
        assert config["adapter_model_file"] == f"{folder}/results/megatron_gpt_adapter.nemo"
        assert f"top_k_{config['inference']['top_k']}" in path


def test_a_base_that_each_run_converts(launch: Launch, workplace: Workplace):
    folder = write_folder(workplace.root / "hf")
    stages = ["stages=[conversion_hf2nemo,adapter_learning]", "adapter_learning=llama/squad", "conversion_hf2nemo=hf"]
    model = ["conversion_hf2nemo.run.model_train_name=llama_7b"]
    model += [f"conversion_hf2nemo.model.hf_model_path={folder}"]
    sizes = ["adapter_learning.model.tensor_model_parallel_size=1", "conversion_hf2nemo.model.precision=32,bf16"]
    own = [argument for argument in workplace.arguments if "language_model_path" not in argument]
    result = launch("-m", *own, *stages, *model, *sizes, "debug=True")
    assert result.status == 0, result.err
    found = configs(workplace)
    assert len(found) == 4
    for precision in ("32", "bf16"):
        ending = f"_precision_{precision}/"
        (base,) = [config["model"]["nemo_path"] for path, config in found.items() if f"convert_nemo{ending}" in path]
        (read,) = [config["model"]["language_model_path"] for path, config in found.items() if f"squad{ending}" in path]
        assert read == base


@pytest.mark.parametrize(
    ("sweep", "folders"),
    [
        # values that the documented folder's name already contains
        (["adapter_learning.run.model_train_name=a,b"], {"a/adapter_learning_squad", "b/adapter_learning_squad"}),
        (["adapter_learning=gpt3/squad,llama/squad", "adapter_learning.model.tensor_model_parallel_size=1"],
         {"gpt3_5b/adapter_learning_squad_adapter_learning_gpt3-squad",
          "llama_7b/adapter_learning_squad_adapter_learning_llama-squad"}),
        (["adapter_learning.model.optim.lr=1e-3,1e-4", "adapter_learning.trainer.max_epochs=range(1,3)"],
         {f"gpt3_5b/adapter_learning_squad_lr_{lr}_max_epochs_{n}" for lr in ("0.001", "0.0001") for n in (1, 2)}),
        (["adapter_learning.model.data.add_eos=true,false", "++evaluation.run.name=x"],
         {"gpt3_5b/adapter_learning_squad_add_eos_True", "gpt3_5b/adapter_learning_squad_add_eos_False"}),
    ],
)  # fmt: skip
def test_folders(launch: Launch, workplace: Workplace, sweep: list[str], folders: set[str]):
    result = launch("-m", *workplace.arguments, *sweep, "debug=True")
    assert result.status == 0, result.err
    assert {str(Path(path).parent) for path in configs(workplace)} == folders


def test_all_mistakes_of_all_runs_and_nothing_is_launched(launch: Launch, workplace: Workplace):
    sizes = ["adapter_learning.model.tensor_model_parallel_size=2", "adapter_learning.trainer.devices=2"]
    batch = "adapter_learning.model.global_batch_size=64,63"
    result = launch("-m", *workplace.arguments, *sizes, batch, f"{DIM}=8,15,16,17", "cluster_type=here")
    assert result.status == 2
    assert result.err.startswith("4 mistakes;"), result.err
    assert (
        "15 does not divide over tensor_model_parallel_size 2 (run global_batch_size=64, adapter_dim=15; " in result.err
    )
    assert "17 does not divide" in result.err
    assert "63 is not a multiple" in result.err
    assert "and 1 more)" in result.err  # four of the runs have this batch size; three are named
    assert "cluster_type (command line): 'here' is not a cluster type\n" in result.err  # all have
    assert not workplace.results.exists()


def test_runs_that_would_write_the_same_files(launch: Launch, workplace: Workplace):
    fixed = f"adapter_learning.run.results_dir={workplace.results}/mine"
    result = launch("-m", *workplace.arguments, fixed, "adapter_learning.run.model_train_name=one,two", "debug=True")
    assert result.status == 2
    assert f"{workplace.results}/mine: several runs of this sweep would write to it" in result.err


def test_runs_that_do_not_differ(launch: Launch, workplace: Workplace):
    result = launch("-m", *workplace.arguments, "evaluation.inference.top_k=1,2")
    assert result.status == 2
    assert "several runs of this sweep are the same: adapter_learning" in result.err


def test_a_run_that_fails_ends_the_sweep(launch: Launch, workplace: Workplace):
    workplace.stub("train.py", "sys.exit(3)\n")
    result = launch("-m", *workplace.arguments, f"{DIM}=8,16,32", f"data_dir={workplace.root}")
    assert result.status == 3
    assert "not launched: the remaining 2 runs" in result.err
    assert len(configs(workplace)) == 1


def calls_of(number: int, launch: Launch, workplace: Workplace) -> Counter[str]:
    """Return how often each function of the launcher is called in a sweep of `number` runs."""
    sweep = [f"base_results_dir={workplace.root}/{number}", f"{DIM}=range(1,{number + 1})"]
    with cProfile.Profile() as profile:
        result = launch("-m", *workplace.arguments, *sweep, "debug=True")
    assert result.status == 0, result.err
    own = (e for e in profile.getstats() if str(getattr(e.code, "co_filename", "")).startswith(f"{REPOSITORY}/nemo_"))
    return Counter({f"{e.code.co_filename}:{e.code.co_firstlineno}:{e.code.co_name}": e.callcount for e in own})


def test_work_grows_with_the_number_of_runs_alone(launch: Launch, workplace: Workplace):
    two, three, five = (calls_of(number, launch, workplace) for number in (2, 3, 5))
    assert three.total() > two.total() * 1.25  # calls are counted
    assert (five - three).total() == pytest.approx(2 * (three - two).total(), rel=0.02)
    opened = [name for name in five if name.endswith(":read_outline")]
    assert [five[name] for name in opened] == [1]  # the base is read once


def test_data_is_prepared_once(launch: Launch, workplace: Workplace, prepared: list):
    launch("-m", *workplace.arguments, f"{DIM}=8,16", f"data_dir={workplace.root}")
    assert len(prepared) == 1


def test_what_may_be_secret_is_in_no_label_and_no_folder(launch: Launch, workplace: Workplace):
    result = launch("-m", *workplace.arguments, "env_vars.MY_TOKEN=hunter22,hunter33", "debug=True")
    assert result.status == 0, result.err
    assert "run 2 of 2: MY_TOKEN=***" in result.out
    assert "hunter" not in result.out + result.err
    folders = sorted(path.name for path in (workplace.results / "gpt3_5b").iterdir())
    assert len(folders) == 2
    assert not any("hunter" in name for name in folders)
    launch("-m", *workplace.arguments, "env_vars.MY_TOKEN=hunter33,hunter22", "debug=True")
    assert sorted(path.name for path in (workplace.results / "gpt3_5b").iterdir()) == folders
