# SPDX-License-Identifier: Apache-2.0
"""The W&B key reaches a job through its environment or a file name; no file or process list shows it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.launcher.masking import command_line, shown_argument
from tests.workplace import MAKE_ADAPTER, Result, Workplace, executable

pytestmark = pytest.mark.integration

Launch = Callable[..., Result]
KEY = "0123456789abcdef"
# prints the key backwards, and whether any process's command line holds it
TELL = """
import os
lines = []
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        lines.append(path.read_bytes())
    except OSError:
        pass
key = os.environ["WANDB_API_KEY"]
assert any(b"train.py" in line for line in lines)
print(key[::-1], "told" if any(key.encode() in line for line in lines) else "secret")
"""


@pytest.fixture
def keeper(workplace: Workplace) -> Workplace:
    """A workplace with a key file, whose training logs to Weights & Biases."""
    key_file = workplace.root / "private" / "my key"
    key_file.parent.mkdir()
    key_file.write_text(f"{KEY}\n")
    workplace.stub("train.py", MAKE_ADAPTER + TELL)
    workplace.arguments += [f"wandb_api_key_file='{key_file}'", "adapter_learning.exp_manager.create_wandb_logger=True"]
    return workplace


def folder_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b" / "adapter_learning_squad"


def check(workplace: Workplace, *shown: str) -> None:
    """Check that no file or output holds the key, and that the launcher's private files have private permissions."""
    files = [path for path in workplace.root.rglob("*") if path.is_file() and path.parent.name != "private"]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert [text for text in shown if KEY in text] == []
    own = [*folder_of(workplace).glob("launcher*.log"), *folder_of(workplace).glob("squad_gpt3_5b_*.*")]
    assert len(own) >= 5
    assert [path.name for path in own if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_on_this_machine(launch: Launch, console: Callable[..., Result], keeper: Workplace) -> None:
    result = launch(*keeper.arguments)
    assert f"{KEY[::-1]} secret\n" in result.out, result.err
    status, logs = console("status", keeper.results, "--json"), console("logs", folder_of(keeper))
    assert f"{KEY[::-1]} secret\n" in logs.out
    check(keeper, result.out, result.err, status.out, logs.out)


def test_on_slurm(launch: Launch, keeper: Workplace, slurm: Path) -> None:
    result = launch(*keeper.arguments)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    script = folder_of(keeper) / "squad_gpt3_5b_submission.sh"
    environment = os.environ | job | {"TRACE": str(keeper.root / "srun")}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count(f"{KEY[::-1]} secret\n") == 2
    assert len((keeper.root / "srun").read_text().splitlines()) > 5  # the arguments of srun
    check(keeper, result.out, result.err, done.stdout, done.stderr)


def test_on_bcp_by_the_name_of_a_variable(launch: Launch, keeper: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(keeper.root / "bin" / "bcprun", f'printf "%s\\n" "$@" > {keeper.root}/bcprun; eval "${{@: -1}}"')
    monkeypatch.setenv("PATH", f"{keeper.root}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("MY_SECRET", KEY)
    result = launch(*keeper.arguments, "cluster_type=bcp", "wandb_api_bcp_secret_key=MY_SECRET")
    assert f"{KEY[::-1]} secret\n" in result.out, result.err
    assert "MY_SECRET" in (keeper.root / "bcprun").read_text()
    check(keeper, result.out, result.err)


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("env_vars.MY_CREDENTIALS=abc1", "env_vars.MY_CREDENTIALS=***"),
        ("+env_vars.GITHUB_PAT=abc1", "+env_vars.GITHUB_PAT=***"),
        ("env_vars={AWS_SECRET_ACCESS_KEY_ID: abc2, OTHER: abc3}", "env_vars=***"),
        ("cluster.additional_parameters={comment: abc4}", "cluster.additional_parameters=***"),
        ("cluster.setup=[export A=abc]", "cluster.setup=***"),
        ("some_new_key=abc", "some_new_key=***"),
        ("abc", "***"),
        (f"adapter_learning.run.name={'0123456789abcdef' * 2}01234567", "adapter_learning.run.name=***"),
        ("++exp.abc.token=abc", "++exp.abc.token=***"),
        ("adapter_learning.exp_manager.summary_writer_kwargs.a=abc", "...summary_writer_kwargs.a=***"),
        ("container=docker://user:abc@registry/x", "container=***"),
        ("container=docker://registry/x:24.01", "container=docker://registry/x:24.01"),
        ("cluster.partition=gpu", "cluster.partition=gpu"),
        ("adapter_learning=gpt3/squad", "adapter_learning=gpt3/squad"),
        ("stages=[evaluation]", "stages=[evaluation]"),
        ("adapter_learning.model.data.train_ds=[/a.jsonl]", "adapter_learning.model.data.train_ds=[/a.jsonl]"),
        ("~adapter_learning.model.restore_path", "~adapter_learning.model.restore_path"),
        ("--config-name=mine", "--config-name=mine"),
        ("-m", "-m"),
    ],
)
def test_a_command_line_shows_what_may_be_shown(argument: str, shown: str) -> None:
    assert shown_argument(argument).endswith(shown.removeprefix("..."))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("program", "shown"),
    [("/a/main.py", "python3 /a/main.py"), ("/a/.venv/bin/nemo-launcher", "nemo-launcher launch")],
)
def test_a_command_line_can_be_repeated(monkeypatch: pytest.MonkeyPatch, program: str, shown: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--config-name", "topics"])
    assert command_line() == f"{shown} --config-name topics"


def test_a_message_shows_no_password_of_a_url(launch: Launch, workplace: Workplace) -> None:
    for key in ("run.name", "model.nemo_path", "trainer.precision", "model.data.train_ds"):
        result = launch(*workplace.arguments, f'adapter_learning.{key}="https://me:abc1@host/x"')
        assert result.status == 2
        assert "abc1" not in result.err


def test_values_that_may_be_secret_stay_out_of_the_command_log(launch: Launch, workplace: Workplace) -> None:
    pairs = ["env_vars.MY_TOKEN=abc1", "env_vars={HF_TOKEN: abc2, OTHER: shown, MY_PASSWORD: 'abc3'}"]
    result = launch(*workplace.arguments, "debug=True", *pairs)
    assert result.status == 0, result.err
    log = (folder_of(workplace) / "launcher_cmd.log").read_text()
    assert "abc" not in log
    assert "adapter_learning.trainer.devices=1" in log


SECRETS = [
    "0123456789abcdef0123456789abcdef01234567",
    "wandb_v1_aBcDeFgHiJkLmNoP123",
    "sk-aBcDeFgHiJkLmNoP1234",
    "hf_aBcDeFgHiJkLmNoPqRsT",
    "ghp_aBcDeFgHiJkLmNoPqRsT1234",
    "a1b2c3d4e5f6a7b8c9d0e1f2",
    "local-0123456789abcdef0123456789abcdef01234567",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_where_a_name_belongs_is_refused_without_showing_it(
    launch: Launch, workplace: Workplace, secret: str
) -> None:
    result = launch(*workplace.arguments, f"wandb_api_bcp_secret_key={secret}", "debug=True")
    assert result.status == 2
    assert "wandb_api_bcp_secret_key=WANDB_API_KEY" in result.err
    assert secret not in result.err + result.out
    assert not workplace.results.exists()


@pytest.mark.parametrize(
    "argument",
    [
        "env_vars.MY_TOKEN=[{}]",
        "env_vars.A-B={}",
        "my_token={}",
        "env_vars.X='{}\n'",
        "env_vars.X={}=:",
        "--token={}",
        "cluster.partition={}",
        "adapter_learning.trainer.max_epochs={}",
        "wandb_api_key_file={}",
        "adapter_learning.exp_manager.wandb_logger_kwargs.token={}",
    ],
)
def test_no_message_shows_a_secret(launch: Launch, workplace: Workplace, argument: str) -> None:
    for secret in SECRETS[:2]:
        result = launch(*workplace.arguments, argument.format(secret), "cluster_type=interactive")
        assert secret not in result.err + result.out
