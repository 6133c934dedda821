# SPDX-License-Identifier: Apache-2.0
"""The documented Base Command Platform commands, verbatim, in a file system with their paths.

bcprun is a stand-in (bcprun.py) with the real options that really starts the ranks.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.conversion.convert import convert
from tests import t5
from tests.engine import tiny_gpt_nemo
from tests.integration.launching import REPOSITORY, write_squad_source

IN_ROOT = Path(__file__).with_name("in-root.sh")
BCPRUN = Path(__file__).with_name("bcprun.py")
CASES = [(stage, family) for family in ("gpt3", "t5") for stage in ("adapter_learning", "ia3_learning")]
MODELS = {"gpt3": "gpt3_5b", "t5": "t5_220m"}
# Overrides for a machine without GPUs, as the documentation suggests.
LAPTOP = (
    *("trainer.accelerator=cpu", "trainer.precision=32", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"),
    *("model.global_batch_size=8", "model.micro_batch_size=4", "model.data.num_workers=0"),
)


def namespaces_work() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not namespaces_work(), reason="/opt, /mount and /results need user and mount namespaces"),
]


def documented(stage: str, family: str, *more: str) -> str:
    """Return the documented command line; `more` arguments precede the redirection."""
    model = MODELS[family]
    base = f"/mount/results/{model}/convert_nemo/results/megatron_{family.removesuffix('3')}.nemo"
    arguments = [
        f"{stage}={family}/squad",
        f"stages=[{stage}]",
        "cluster_type=bcp",
        "launcher_scripts_path=/opt/NeMo-Megatron-Launcher/launcher_scripts",
        "data_dir=/mount/data",
        "base_results_dir=/mount/results",
        f"{stage}.run.model_train_name={model}",
        f"{stage}.model.language_model_path={base}",
        *more,
    ]
    command = f"python3 /opt/NeMo-Megatron-Launcher/launcher_scripts/main.py {' '.join(arguments)}"
    return f"{command} >> /results/{stage}_{family}_log.txt 2>&1"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file system of a BCP job: checkout, workspaces with data and bases, and /results."""
    root = tmp_path_factory.mktemp("root")
    for name in ("opt", "results", "bcp"):
        (root / name).mkdir()
    (root / "opt/NeMo-Megatron-Launcher").symlink_to(REPOSITORY)
    write_squad_source(root / "mount/data")
    folder = root / "mount/results"
    tiny_gpt_nemo(folder / "gpt3_5b/convert_nemo/results/megatron_gpt.nemo")
    source = t5.save_t5(root / "t5")
    settings = source / "tokenizer_config.json"  # a BOS token, which the documented command needs
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": "<extra_id_9>"}))
    convert(source, folder / "t5_220m/convert_nemo/results/megatron_t5.nemo")
    bcprun = root / "bcp/bcprun"
    bcprun.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} {BCPRUN} "$@"\n')
    bcprun.chmod(0o755)
    return root


def inside(root: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command with the job's paths and environment."""
    path = f"/bcp:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    job = {"PATH": path, "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1", "NGC_JOB_ID": "1"}
    run = ["bash", str(IN_ROOT), str(root), "bash", "-c", command]
    return subprocess.run(run, env=job | environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("stage", "family"), CASES)
def test_the_documented_command_verbatim(root: Path, stage: str, family: str) -> None:
    """Nothing added: the script asks bcprun for the documented eight ranks on one node."""
    done = inside(root, documented(stage, family), NEMO_LAUNCHER_DEBUG="1", NGC_ARRAY_SIZE="1")
    log = (root / f"results/{stage}_{family}_log.txt").read_text()
    assert done.returncode == 0, log + done.stderr
    assert "debug, not launched" in log
    model = MODELS[family]
    script = f"/mount/results/{model}/{stage}_squad/squad_{model}_submission.sh"
    shown = inside(root, f"bash {script}", BCPRUN_SHOW="1", NGC_ARRAY_SIZE="1")
    options = json.loads(shown.stdout)
    assert (options["nnodes"], options["npernode"], options["no_redirect"]) == (1, 8, True)
    assert (options["env"], "TRANSFORMERS_OFFLINE" in options["cmd"]) == ([], False)  # no values in process lists
    variables = root / script.lstrip("/").replace("_submission.sh", "_env.sh")
    assert variables.read_text() == 'declare -x NCCL_DEBUG="WARN"\ndeclare -x TRANSFORMERS_OFFLINE="1"\n'
    assert variables.stat().st_mode & 0o777 == 0o600
    engine = shlex.split(shlex.split(options["cmd"])[-1])[-2:]
    assert engine[0] == "/opt/NeMo-Megatron-Launcher/launcher_scripts/train.py"
    assert (root / engine[1].lstrip("/")).is_file()


@pytest.mark.parametrize(("stage", "family"), [("adapter_learning", "t5"), ("ia3_learning", "gpt3")])
def test_the_documented_command_trains_an_adapter(root: Path, stage: str, family: str) -> None:
    """Two ranks: GPT on one node, T5 on two."""
    nodes = {"gpt3": 1, "t5": 2}[family]
    more = [*LAPTOP, f"trainer.num_nodes={nodes}", f"trainer.devices={2 // nodes}"]
    command = documented(stage, family, *(f"{stage}.{setting}" for setting in more), "env_vars.GREETING='a b'")
    done = inside(root, command, NGC_ARRAY_SIZE=str(nodes))
    log = (root / f"results/{stage}_{family}_log.txt").read_text()
    assert done.returncode == 0, log + done.stderr
    assert f"{stage}: done in" in log
    folder = root / f"mount/results/{MODELS[family]}/{stage}_squad/results"
    adapter = folder / f"megatron_{family.removesuffix('3')}_{stage.removesuffix('_learning')}.nemo"
    assert read_adapter(adapter)[0]["language_model_path"].startswith("/mount/results/")
    trained = json.loads((folder / "training_summary.json").read_text())
    assert f"{trained['trainable_parameters']:,} parameters to train" in log
    assert f"{trained['steps']} steps" in log


def test_a_failure_keeps_its_place(root: Path) -> None:
    """The launcher's exit status is kept in spite of the redirection."""
    arguments = [f"adapter_learning.{setting}" for setting in (*LAPTOP, "trainer.devices=1")]
    arguments += ["adapter_learning.run.task_name=short", "adapter_learning.model.encoder_seq_length=8"]
    done = inside(root, documented("adapter_learning", "gpt3", *arguments), NGC_ARRAY_SIZE="1")
    assert done.returncode != 0
    assert "prompts are longer than 8 tokens" in (root / "results/adapter_learning_gpt3_log.txt").read_text()
