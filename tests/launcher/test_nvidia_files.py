# SPDX-License-Identifier: Apache-2.0
"""Configuration files with the keys of NVIDIA's launcher are accepted as they are, and give the jobs of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_launcher.config.older_names import OLDER_NAMES, with_current_names
from nemo_launcher.config.without_effect import without_foreign
from nemo_launcher.launcher.elsewhere import ELSEWHERE
from nemo_launcher.places import LAUNCHER_SCRIPTS
from tests.workplace import REPOSITORY, Result, Workplace

from .nvidia_files import EVALUATIONS, LEARNING, write_files, write_tree

pytestmark = pytest.mark.unit
Launch = Callable[..., Result]
DRY = ("debug=True", "preflight=off", "cluster_type=bcm")
BATCHES = "evaluation.data.global_batch_size"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --config-dir: `theirs` as of 24.05, `first` as of 23.05."""
    folder = tmp_path_factory.mktemp("nvidia")
    write_files(folder, "first", first=True)
    return write_files(folder, "theirs")


def arguments(place: Workplace, theirs: Path, stage: str, choice: str) -> list[str]:
    folders = [f"launcher_scripts_path={place.scripts}", f"base_results_dir={place.results}"]
    return [f"stages=[{stage}]", f"{stage}={choice}", *folders, *DRY, "--config-dir", str(theirs)]


def job_of(place: Workplace, name: str = "*") -> dict[str, Any]:
    (file,) = place.results.rglob(f"{name}_hydra.yaml")
    section: dict[str, Any] = yaml.safe_load(file.read_text())
    return section


@pytest.mark.parametrize("release", ["theirs", "first"])
@pytest.mark.parametrize(("stage", "family"), LEARNING)
def test_their_learning_files(
    stage: str, family: str, release: str, launch: Launch, workplace: Workplace, theirs: Path
) -> None:
    result = launch(*arguments(workplace, theirs, stage, f"{family}/{release}"))
    assert (result.status, result.err) == (0, "")
    job = job_of(workplace)
    assert (job["model"]["optim"]["lr"], job["model"]["optim"]["sched"]["warmup_steps"]) == (1e-4, 50)
    assert job["trainer"]["use_distributed_sampler"] is False
    assert job["run"]["model_family"] == family


@pytest.mark.parametrize(("method", "family"), EVALUATIONS)
def test_their_evaluation_files(method: str, family: str, launch: Launch, workplace: Workplace, theirs: Path) -> None:
    result = launch(*arguments(workplace, theirs, "evaluation", f"{method}_{family}/theirs"))
    assert result.status == 0, result.err
    job = job_of(workplace)
    assert [Path(path).name for path in job["data_paths"]] == ["squad_test.jsonl"]
    assert Path(job["language_model_path"]).name == f"megatron_{'t5' if family == 't5' else 'gpt'}.nemo"
    assert (job["trainer"]["devices"], job["trainer"]["num_nodes"]) == (1, 1)
    assert job["inference"]["add_BOS"] is True
    assert "data" not in job
    assert "gpt_model_file" not in job
    assert "log_every_n_steps" not in job["trainer"]
    told = [line for line in result.err.splitlines() if line.startswith("warning:")]
    assert [BATCHES in line for line in told] == ([True] if family == "t5" else [])


KEYS_OF_NEMO = [
    ("adapter_learning.model.megatron_amp_O2=True", "has no effect: adapters train in fp32"),
    ("+adapter_learning.model.optim.grad_sync_dtype=bf16", "has no effect: the gradients of adapters are summed"),
    ("adapter_learning.model.data.min_seq_length=1", ""),
    ("++adapter_learning.model.fp8=False", ""),
    ("adapter_learning.model.save_nemo_on_validation_end=False", "has no effect: the adapter is exported"),
]


@pytest.mark.parametrize(("text", "told"), KEYS_OF_NEMO)
def test_keys_that_only_nemo_has(text: str, told: str, launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, text, *DRY)
    assert result.status == 0, result.err
    key = text.lstrip("+").partition("=")[0]
    assert result.err.count("warning:") == bool(told)
    assert told == "" or f"{key} (command line): {told}" in result.err
    assert key.rpartition(".")[2] not in str(job_of(workplace))


@pytest.mark.parametrize(
    "text",
    [
        "adapter_learning.model.fp8=True",
        "+adapter_learning.model.data.min_seq_length=20",
        "adapter_learning.model.hidden_dropout=0.1",
    ],
)
def test_a_value_of_nemo_that_would_change_results_is_refused(text: str, launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, text, *DRY)
    assert result.status == 2
    assert f"{text.lstrip('+').partition('=')[0]} (command line): must be" in result.err
    assert "leave it out" in result.err
    assert not workplace.results.exists()


def test_a_current_key_on_the_command_line_wins_over_an_older_one_in_a_file(
    launch: Launch, workplace: Workplace, theirs: Path
) -> None:
    chosen = arguments(workplace, theirs, "evaluation", "adapter_gpt3/theirs")
    assert launch(*chosen, "evaluation.language_model_path=/mine.nemo").status == 0
    assert job_of(workplace)["language_model_path"] == "/mine.nemo"


def test_an_older_key_on_the_command_line_wins_over_a_current_one_in_a_file(
    launch: Launch, workplace: Workplace, theirs: Path
) -> None:
    chosen = arguments(workplace, theirs, "evaluation", "adapter_gpt3/squad")
    older = ["evaluation.model.adapter_model_file=/a.nemo", "evaluation.data.test_ds=[/t.jsonl]"]
    assert launch(*chosen, *older).status == 0
    job = job_of(workplace)
    assert (job["adapter_model_file"], job["data_paths"]) == ("/a.nemo", ["/t.jsonl"])


def test_sections_that_are_left_empty_are_removed() -> None:
    section = {"data": {"test_ds": ["a"]}, "model": {"adapter_model_file": "b", "other": 1}, "trainer": {}}
    found = with_current_names(section, "evaluation")
    assert found == {"data_paths": ["a"], "adapter_model_file": "b", "model": {"other": 1}, "trainer": {}}
    own = without_foreign({"data": {"num_workers": 2}}, "evaluation", str)
    assert own.section == {}
    assert [problem.where for problem in own.warnings] == ["data.num_workers"]


def test_every_older_key_has_a_current_one() -> None:
    from nemo_launcher.launcher.suggestions import type_of

    for stage, names in OLDER_NAMES.items():
        for current in names.values():
            assert type_of(f"{stage}.{current}") is not None


@pytest.mark.parametrize("first", [False, True])
def test_a_whole_folder_of_theirs_in_place_of_conf(
    first: bool, launch: Launch, workplace: Workplace, tmp_path: Path
) -> None:
    """Its other stages and the copies of choices are left out; launcher_scripts_path is that of this launcher."""
    folder = write_tree(tmp_path / "conf", first=first)
    chain = ["stages=[adapter_learning,evaluation]", "adapter_learning=gpt3/squad", "evaluation=adapter_gpt3/squad"]
    folders = [f"base_results_dir={workplace.results}", f"data_dir={tmp_path / 'data'}", "preflight=off"]
    result = launch("--config-path", str(folder), *chain, *folders, "debug=True")
    assert result.status == 0, result.err
    assert result.err.count("warning:") == 1
    assert "training" in result.err
    assert "nor have conversion, export" in result.err
    script = next(workplace.results.rglob("squad_gpt3_5b_submission.sh")).read_text()
    wanted = ("--gpus-per-node=8", "--wait-all-nodes=1", "export NVTE_FUSED_ATTN=0", "--no-container-mount-home")
    assert [part for part in (*wanted, str(LAUNCHER_SCRIPTS / "train.py")) if part not in script] == []


def test_what_their_folder_chooses_by_itself_is_told(launch: Launch, tmp_path: Path) -> None:
    result = launch("--config-path", str(write_tree(tmp_path / "conf")), "debug=True")
    assert result.status == 2
    assert f"stages ({tmp_path}/conf/config.yaml): 'conversion': conversion of a training checkpoint" in result.err
    assert "1 mistake" in result.err


def test_the_guide_has_every_older_key_and_every_other_stage() -> None:
    guide = (REPOSITORY / "docs/from-nemo-launcher.md").read_text(encoding="utf-8")
    names = [f"| `{s}` | `{a}` | `{b}` |" for s, renamed in OLDER_NAMES.items() for a, b in renamed.items()]
    others = [f"| `{name}` | {entry.title} | {entry.done_by} |" for name, entry in ELSEWHERE.items()]
    assert [row for row in (*names, *others) if row not in guide] == []
    tables = guide.partition("## Other stages")[2].partition("## Keys without effect")[0]
    assert tables.count("\n| `") == len(names) + len(others)
