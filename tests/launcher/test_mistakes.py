# SPDX-License-Identifier: Apache-2.0
"""All mistakes are found before anything is written, and reported together with their place and fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
PREFIX = "adapter_learning."


@pytest.mark.parametrize(
    ("arguments", "where", "hint"),
    [
        (["stages=[adapter_lerning]"], "stages", "did you mean 'adapter_learning'?"),
        (["adapter_lerning=gpt3/squad"], "adapter_lerning", "did you mean 'adapter_learning'?"),
        (["adapter_learning=gpt3/sqad"], "adapter_learning=gpt3/sqad", "did you mean 'gpt3/squad'?"),
        (["adapter_learning.trainer.max_epoch=3"], "max_epoch", "did you mean 'adapter_learning.trainer.max_epochs'?"),
        (["adapter_learning.max_epochs=3"], "max_epochs", "did you mean 'adapter_learning.trainer.max_epochs'?"),
        (["+adapter_learning.model.optim.lrr=3"], "optim.lrr", "did you mean 'adapter_learning.model.optim.lr'?"),
        (["+cluster.partitoin=gpu"], "cluster.partitoin", "did you mean 'cluster.partition'?"),
        (["+contianer=x"], "contianer", "did you mean 'container'?"),
        (["dependency=afterOK"], "dependency", "did you mean 'afterok'?"),
        (["--config-name", "quikstart"], "--config-name quikstart", "did you mean 'quickstart'?"),
        (["cluster_type=slurm"], "cluster_type", "bcm (Slurm)"),
        (["adapter_learning=null"], "adapter_learning=null", "a file's name"),
        (["~adapter_learning"], "adapter_learning", "add adapter_learning=gpt3/squad"),
        (["adapter_learning.run.name=a=b"], "cannot be read as key=value", "'adapter_learning.run.name=\"a=b\"'"),
        (["adapter_learning.trainer.devices=1,2"], "several values for one key", "one run for each value: add -m"),
        (["adapter_learning.model.micro_batch_size=eight"], "must be a whole number, not the text 'eight'", "=1"),
        (["adapter_learning.model.micro_batch_size=0"], "must be at least 1, not 0", "micro_batch_size=1"),
        (["adapter_learning.run.model_train_name=7"], "must be text, not 7", '="7"'),
        (["adapter_learning.model.adapter_tuning.type=paralel_adapter"], "not a choice", "'parallel_adapter'"),
        (["adapter_learning.model.data.train_ds=a.jsonl"], "must be a list", "train_ds=[a.jsonl]'"),
        (["adapter_learning.model.data.cache_dir=True"], "data.cache_dir", "must be text or False or null"),
        (["stages=conversion_hf2nemo", "conversion_hf2nemo=hf"], "hf_model_path", "add conversion_hf2nemo.model.hf_mo"),
        (["adapter_learning.model.language_model_path=${nope}"], "language_model_path", "'nope' not found"),
        (["stages=null"], "no stage is chosen", "data_preparation, conversion_hf2nemo"),
        (["stages=[adapter_learning,adapter_learning]"], "is listed twice", "name it once"),
        (["launcher_scripts_path=/opt"], "does not end in launcher_scripts", "=/opt/launcher_scripts"),
        (["env_vars.WANDB_API_KEY=abc"], "env_vars.WANDB_API_KEY", "wandb_api_key_file="),
        (["wandb_api_bcp_secret_key=not-a-name"], "name of the variable", "wandb_api_bcp_secret_key=WANDB_API_KEY"),
    ],
)
def test_misspelt_and_mistyped(launch: Launch, workplace: Workplace, arguments: list[str], where: str, hint: str):
    result = launch(*workplace.arguments[:2], *arguments)
    assert result.status == 2
    assert where in result.err
    assert hint in result.err
    assert "Traceback" not in result.err
    assert not workplace.results.exists()


@pytest.mark.parametrize(
    ("arguments", "where", "hint"),
    [
        (
            ["model.language_model_path=/no/base.nemo"],
            "base model /no/base.nemo does not exist",
            "language_model_path=",
        ),
        (["model.global_batch_size=7", "model.micro_batch_size=3"], "model.global_batch_size", "global_batch_size=6"),
        (["trainer.devices=2", "model.tensor_model_parallel_size=4"], "trainer.devices", "multiple of 4"),
        (
            ["trainer.devices=4", "model.tensor_model_parallel_size=4", "model.adapter_tuning.adapter_dim=15"],
            "adapter_dim",
            "adapter_dim=16",
        ),
        (
            ["model.adapter_tuning.type=linear_adapter", "model.adapter_tuning.row_init_method=normal"],
            "'normal' has no effect: the initialization of linear_adapter is fixed",
            "row_init_method=zero",
        ),
        (
            ["model.activations_checkpoint_granularity=full"],
            "is required with granularity full",
            "activations_checkpoint_method=uniform",
        ),
        (
            ["model.activations_checkpoint_granularity=full", "model.activations_checkpoint_method=block"],
            "is required with method block",
            "activations_checkpoint_num_layers=8",
        ),
        (
            ["model.activations_checkpoint_method=uniform"],
            "has no effect without",
            "activations_checkpoint_granularity=full",
        ),
        (["trainer.max_epochs=null"], "neither max_epochs nor max_steps", "max_epochs=4"),
        (["trainer.accumulate_grad_batches=2"], "must be 1", "global_batch_size"),
        (["model.virtual_prompt_style=p-tuning"], "no virtual prompts", "no-prompts"),
        (["model.task_templates.0.total_virtual_tokens=10"], "total_virtual_tokens", "=0"),
        (
            ["model.task_templates.0.prompt_template='{answer} of {question}'"],
            "must end with {answer}",
            "move {answer}",
        ),
        (["model.task_templates.0.answer_field=anser"], "'anser' is not a field", "did you mean 'answer'?"),
        (["model.new_tasks=[sqad]"], "no template for 'sqad'", "did you mean 'squad'?"),
        (["model.data.train_ds=[/no/mine.jsonl]"], "data file /no/mine.jsonl does not exist", "correct the path"),
        (["model.restore_path=/no/adapter.nemo"], "/no/adapter.nemo does not exist", "restore_path=null"),
        (["run.results_dir=/dev/null/x"], "cannot write to /dev/null", "base_results_dir"),
        (["run.time_limit=soon"], "'soon' is not a time", "04:00:00"),
        (["run.name=a/b"], "'a/b' cannot be a file name", "letters"),
        (["trainer.num_nodes=2"], "has only this machine", "num_nodes=1"),
    ],
)
def test_impossible(launch: Launch, workplace: Workplace, arguments: list[str], where: str, hint: str):
    result = launch(*workplace.arguments, *(PREFIX + argument for argument in arguments))
    assert result.status == 2
    assert where in result.err
    assert hint in result.err
    assert not workplace.results.exists()


def test_the_decoder_of_a_t5_begins_inside_the_pipeline(launch: Launch, workplace: Workplace):
    sizes = ("trainer.devices=2", "model.pipeline_model_parallel_size=2")
    arguments = ["adapter_learning=t5/squad", *(PREFIX + size for size in sizes)]
    split = "adapter_learning.model.pipeline_model_parallel_split_rank"
    result = launch(*workplace.arguments[:2], *arguments, f"{split}=2")
    assert "the decoder must start at stage 1 to 1" in result.err
    assert f"{split}=1" in result.err
    assert "split_rank" not in launch(*workplace.arguments[:2], *arguments).err


def test_flex_attention_is_not_for_t5(launch: Launch, workplace: Workplace):
    key = "adapter_learning.model.attention_backend"
    told = f"{key} (command line): flex supports GPT and Llama only"
    assert told in launch(*workplace.arguments[:2], "adapter_learning=t5/squad", f"{key}=flex").err
    assert key not in launch(*workplace.arguments[:2], f"{key}=flex").err
    assert "did you mean 'flex'?" in launch(*workplace.arguments[:2], f"{key}=flx").err


@pytest.mark.parametrize(
    ("stage", "fix"),
    [
        ("data_preparation", "add data_preparation=boolq (or cnn_dailymail, multirc, rte, squad, sst2)"),
        ("conversion_hf2nemo", "add conversion_hf2nemo=hf (or hf_gpt, hf_t5, smollm2)"),
    ],
)
def test_a_stage_without_a_file_is_told_which_there_are(
    launch: Launch, workplace: Workplace, stage: str, fix: str
) -> None:
    result = launch(*workplace.arguments, f"stages=[{stage}]", f"~{stage}")
    assert result.status == 2
    assert result.err.rstrip().endswith(fix)


def test_all_mistakes_are_told_at_once(launch: Launch, workplace: Workplace):
    result = launch(
        *workplace.arguments,
        "stages=adapter_learning,ia3_learning,evaluatoin",
        "adapter_learning.model.adapter_tuning.adapter_dim=0",
        "+adapter_learning.trainer.epochs=3",
        "ia3_learning.model.global_batch_size=7",
        "container_mounts=nowhere",
    )
    assert result.status == 2
    for expected in (
        "evaluatoin",
        "adapter_dim",
        "epochs",
        "global_batch_size",
        "megatron_gpt.nemo",
        "container_mounts",
    ):
        assert expected in result.err
    assert not workplace.results.exists()


def test_misspelt_keys_and_wrong_values_are_told_together(launch: Launch, workplace: Workplace):
    result = launch(
        *workplace.arguments,
        "adapter_learning=gpt3/squd",
        "adapter_learning.trainer.max_epoch=3",
        "adapter_learning.trainer.devices=x",
    )
    assert result.err.startswith("3 mistakes")
    assert "does not exist" not in result.err  # nothing about the unintended configuration


def test_the_source_of_a_wrong_value_is_named(launch: Launch, workplace: Workplace):
    result = launch(*workplace.arguments[:2], "adapter_learning.trainer.accumulate_grad_batches=2")
    assert "adapter_learning.model.language_model_path (conf/adapter_learning/gpt3/squad.yaml)" in result.err
    assert "adapter_learning.trainer.accumulate_grad_batches (command line)" in result.err


def test_evaluation_of_the_other_method_leads_to_the_right_choice(launch: Launch, workplace: Workplace):
    arguments = [f"{stage}.model.language_model_path={workplace.base_model}" for stage in ("ia3_learning",)]
    result = launch(*workplace.arguments, *arguments, "stages=ia3_learning,evaluation")
    assert "choose evaluation=ia3_gpt3/squad" in result.err


def test_a_stage_in_the_wrong_order_is_told(launch: Launch, workplace: Workplace):
    result = launch(*workplace.arguments, "stages=evaluation,adapter_learning")
    assert "adapter_learning makes it: put that stage first in stages" in result.err


def test_a_bug_keeps_its_traceback(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("nemo_launcher.launcher.compose.read", broken)
    with pytest.raises(ValueError, match="a bug"):
        launch(*workplace.arguments)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("cluster.additional_parameters.licences=a", "sbatch has no such option\n    -> did you mean 'licenses'?"),
        ("cluster.additional_parameters.q_os=a", "sbatch has no such option"),
        ("cluster.additional_parameters.ntasks-per-node=2", "cannot be set here\n    -> trainer.devices of the stage"),
        ("cluster.additional_parameters={qos: high}", "has its own key\n    -> cluster.qos=..."),
        ("adapter_learning.run.dependency='aftrok:1'", "not a valid Slurm dependency\n    -> did you mean 'afterok'?"),
        ("adapter_learning.run.dependency='afterok:x'", "not a valid Slurm dependency\n    -> write afterok:JOB_ID"),
        ("evaluation.run.dependency='afterok:1?afterok:2'", "cannot be combined with the dependency on"),
    ],
)  # fmt: skip
def test_mistakes_in_what_slurm_gets(setting: str, told: str, launch: Launch, workplace: Workplace):
    evaluation = [f"evaluation.language_model_path={workplace.base_model}", "stages=adapter_learning,evaluation"]
    result = launch(*workplace.arguments, *evaluation, "debug=True", "cluster_type=bcm", setting)
    assert result.status == 2
    assert told in result.err


BROKEN = ("a: [1\n b: {", "defaults: [config, _self_]\nlr: &a [*a]\n", "a: !!python/object:x {}")


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_of_the_users_own(launch: Launch, workplace: Workplace, text: str):
    (workplace.root / "mine.yaml").write_text(text)
    result = launch("--config-dir", str(workplace.root), "--config-name", "mine", *workplace.arguments)
    assert result.status == 2
    assert len(result.err) < 1000
    assert "check your own YAML files" in result.err
