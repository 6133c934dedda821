# SPDX-License-Identifier: Apache-2.0
"""Scripts for the documented command lines, which run correctly with any characters in paths."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.archives import write_base
from tests.launcher.scripts import lines_of
from tests.workplace import Launch, Workplace, executable


@pytest.mark.unit
@pytest.mark.parametrize("stage", ["adapter_learning", "ia3_learning"])
@pytest.mark.parametrize("stages", ["stages={}", "stages=[{}]"])
def test_documented_slurm_command(launch: Launch, workplace: Workplace, monkeypatch, stage: str, stages: str):
    monkeypatch.setenv("NEMO_LAUNCHER_DEBUG", "1")
    result = launch(
        *workplace.arguments[:2],
        stages.format(stage),
        "cluster_type=bcm",
        f"data_dir={workplace.root}/data",
        "container=nvcr.io/nvidia/nemo:24.05",
        "container_mounts=[/lustre,/host:/inside,null]",
        "cluster.partition=gpu",
        "cluster.account=me",
        "cluster.srun_args=[--no-container-mount-home]",
        "env_vars.NCCL_DEBUG=INFO",
        f"{stage}.model.language_model_path={workplace.base_model}",
    )
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b" / f"{stage}_squad"
    lines = lines_of(folder, "squad_gpt3_5b")
    log = f"{folder}/log-squad_gpt3_5b_%j"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        "#SBATCH --account=me",
        "#SBATCH --dependency=singleton",
        f"#SBATCH --error={log}.err",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-task=1",
        "#SBATCH --job-name=nemo-megatron-squad_gpt3_5b",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --mem=0",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={log}.out",
        "#SBATCH --partition=gpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR1@180",
        "#SBATCH --time=04:00:00",
    ]
    root, scripts, results = workplace.root, workplace.scripts, workplace.results
    own = ",".join(f"{path}:{path}" for path in (root, scripts, root / "data", results))
    assert "set -euo pipefail" in lines
    assert "export NCCL_DEBUG=INFO" in lines
    assert lines[-4] == (
        f"srun --output {log}.out --error {log}.err --open-mode=append --gpu-bind=none "
        f"--container-image nvcr.io/nvidia/nemo:24.05 --container-mounts {own},/lustre:/lustre,/host:/inside "
        "--no-container-mount-home \\"
    )
    assert lines[-2] == f"  python3 -u {scripts}/train.py {folder}/squad_gpt3_5b_hydra.yaml \\"
    # stopped by the signal ahead of the time limit: back into the queue; any other status stays
    assert "-ne 75 ] || scontrol requeue" in lines[-1]
    assert lines[-1].endswith('exit "$status"; }')


@pytest.mark.unit
def test_bcp_script(launch: Launch, workplace: Workplace):
    result = launch(
        *workplace.arguments,
        "debug=True",
        "cluster_type=bcp",
        "adapter_learning.trainer.devices=8",
        "adapter_learning.trainer.num_nodes=2",
        "adapter_learning.model.global_batch_size=128",
        "adapter_learning.exp_manager.create_wandb_logger=True",
        "wandb_api_bcp_secret_key=MY_SECRET",
        "env_vars.NCCL_DEBUG='a b'",
    )
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b" / "adapter_learning_squad"
    command = lines_of(folder, "squad_gpt3_5b")[-1]
    assert command.startswith("bcprun --nnodes 2 --npernode 8 -no_redirect --cmd ")
    exports = [line for line in lines_of(folder, "squad_gpt3_5b") if line.startswith("export ")]
    assert "a b" not in command  # by name: process lists show values
    subprocess.run(["bash", "-euc", "\n".join([*exports, *lines_of(folder, "squad_gpt3_5b")[-3:-1]])], check=True)
    # bcprun passes --cmd to a shell; split it like that shell
    inner = subprocess.run(
        [
            "bash",
            "-c",
            f'bcprun() {{ eval "${{@: -1}}"; }}; {command.replace(sys.executable, "printenv WANDB_API_KEY #")}',
        ],
        env={**os.environ, "MY_SECRET": "hidden"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert inner.stdout == "hidden\n"


@pytest.mark.unit
def test_job_folder_holds_what_runs_the_job_again(launch: Launch, workplace: Workplace):
    launch(*workplace.arguments, "debug=True", "env_vars.MY_TOKEN=abc", "adapter_learning.trainer.max_epochs=7")
    folder = workplace.results / "gpt3_5b" / "adapter_learning_squad"
    config = yaml.safe_load((folder / "squad_gpt3_5b_hydra.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 7
    assert config["model"]["nemo_path"] == f"{folder}/results/megatron_gpt_adapter.nemo"
    assert "${" not in (folder / "squad_gpt3_5b_hydra.yaml").read_text()
    command = (folder / "launcher_cmd.log").read_text()
    assert "adapter_learning.trainer.max_epochs=7" in command
    assert "abc" not in command
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes["squad_gpt3_5b_submission.sh"] == 0o700
    assert modes["launcher_cmd.log"] == 0o600


@pytest.mark.integration
def test_spaces_quotes_and_dollars_reach_the_job_as_they_are(launch: Launch, workplace: Workplace):
    folder = workplace.root / 'it\'s $HOME "here" `id`'
    workplace.stub(
        "train.py",
        """
        import os
        path = pathlib.Path(config["model"]["nemo_path"])
        path.parent.mkdir(parents=True)
        path.write_text(sys.argv[1] + "|" + os.environ["GREETING"])
        """,
    )
    quoted = str(folder).replace("'", "\\'")
    result = launch(
        *workplace.arguments, f"adapter_learning.run.results_dir='{quoted}'", "env_vars.GREETING='a b; $PWD \"c\"'"
    )
    assert result.status == 0, result.err
    written = (folder / "results" / "megatron_gpt_adapter.nemo").read_text()
    assert written == f'{folder}/squad_gpt3_5b_hydra.yaml|a b; $PWD "c"'


@pytest.mark.integration
def test_chained_jobs_wait_for_success(launch: Launch, workplace: Workplace, slurm: Path):
    evaluation = [f"evaluation.language_model_path={workplace.base_model}"]
    result = launch(*workplace.arguments, *evaluation, "stages=adapter_learning,evaluation")
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b"
    learning, scoring = slurm.read_text().splitlines()
    assert learning == f"--parsable {folder}/adapter_learning_squad/squad_gpt3_5b_submission.sh | "
    assert scoring.startswith("--parsable --dependency=afterok:101,singleton ")
    assert "submitted as job 102" in result.out
    assert "sbatch" in (folder / "adapter_learning_squad" / "launcher.log").read_text()


@pytest.mark.integration
def test_a_refused_submission_names_what_is_queued_already(launch: Launch, workplace: Workplace, slurm: Path):
    refuse = 'echo "no such account" >&2; exit 1'
    tried = "[ $1 != --test-only ] || exit 0"
    submit = f"[ -e {slurm} ] && {{ {refuse}; }}; echo 7 | tee {slurm}"
    executable(workplace.root / "bin" / "sbatch", f"{tried}; {submit}")
    evaluation = [f"evaluation.language_model_path={workplace.base_model}"]
    result = launch(*workplace.arguments, *evaluation, "stages=adapter_learning,evaluation")
    assert result.status == 1
    assert "no such account" in result.err
    assert "scancel 7" in result.err
    assert f"nemo-launcher rerun {workplace.results}/gpt3_5b/adapter_learning_squad_eval --onwards" in result.err


@pytest.mark.unit
def test_relative_paths_reach_the_job_absolute(launch: Launch, workplace: Workplace, monkeypatch):
    monkeypatch.chdir(workplace.root)
    result = launch(
        "debug=True",
        "launcher_scripts_path=launcher_scripts/",
        "base_results_dir=results",
        "adapter_learning.model.language_model_path=base.nemo",
        "adapter_learning.model.data.validation_ds=[data/squad_val.jsonl]",
        "adapter_learning.model.data.train_ds=[data/squad_train.jsonl]",
    )
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b/adapter_learning_squad"
    model = yaml.safe_load((folder / "squad_gpt3_5b_hydra.yaml").read_text())["model"]
    assert model["language_model_path"] == str(workplace.base_model)
    assert model["data"]["train_ds"] == [f"{workplace.root}/data/squad_train.jsonl"]
    assert lines_of(folder, "squad_gpt3_5b")[-1].endswith(f"{folder}/squad_gpt3_5b_hydra.yaml")


@pytest.mark.unit
def test_what_a_container_would_not_see_is_told(launch: Launch, workplace: Workplace, tmp_path_factory):
    outside = write_base(tmp_path_factory.mktemp("outside") / "base.nemo")
    model = f"adapter_learning.model.language_model_path={outside}"
    container = ["debug=True", "cluster_type=bcm", "container=image"]
    result = launch(*workplace.arguments, *container, model)
    assert result.status == 2
    assert f"reads {outside}, which is not mounted" in result.err
    assert launch(*workplace.arguments, *container, model, f"container_mounts=[{outside.parent}]").status == 0


@pytest.mark.unit
def test_a_script_that_is_not_there_is_told(launch: Launch, workplace: Workplace):
    (workplace.scripts / "train.py").unlink()
    result = launch(*workplace.arguments)
    assert result.status == 2
    assert "has no train.py" in result.err


@pytest.mark.unit
def test_older_names_of_keys_are_understood(launch: Launch, workplace: Workplace):
    older = ["adapter_learning.trainer.replace_sampler_ddp=False", f"evaluation.gpt_model_file={workplace.base_model}"]
    result = launch(*workplace.arguments, *older, "stages=adapter_learning,evaluation", "debug=True")
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b"
    trainer = yaml.safe_load((folder / "adapter_learning_squad/squad_gpt3_5b_hydra.yaml").read_text())["trainer"]
    assert trainer["use_distributed_sampler"] is False
    assert "replace_sampler_ddp" not in trainer
    evaluation = yaml.safe_load((folder / "adapter_learning_squad_eval/eval_squad_gpt3_5b_hydra.yaml").read_text())
    assert evaluation["language_model_path"] == str(workplace.base_model)
    assert "gpt_model_file" not in evaluation
