# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher migrate`: the new files give the same jobs, the old ones stay, and what is left to do is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nemo_launcher.files import yaml_edits
from nemo_launcher.launcher.migrate_verb import DIFF_NAME
from nemo_launcher.launcher.migration import migrate_file
from tests.workplace import Result, Workplace

from .nvidia_files import EVALUATIONS, evaluation, learning, write_group, write_tree

pytestmark = pytest.mark.unit
Verb = Callable[..., Result]
CHAINS = [
    ("adapter_learning=gpt3/squad", "evaluation=adapter_gpt3/squad"),
    ("ia3_learning=t5/squad", "evaluation=ia3_t5/squad"),
]


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("first", [False, True])
def test_the_new_files_give_the_same_jobs(
    first: bool, launch: Verb, console: Verb, workplace: Workplace, tmp_path: Path
) -> None:
    old, new = write_tree(tmp_path / "conf", first=first), tmp_path / "conf-migrated"
    before = digests(old)
    done = console("migrate", old)
    assert (done.status, done.err) == (0, "")
    assert "to do" not in done.out
    assert digests(old) == before
    jobs = [jobs_of(launch, folder, workplace.results / folder.name, tmp_path / "data") for folder in (old, new)]
    assert len(jobs[0]) == 4
    assert jobs[0] == jobs[1]


def jobs_of(launch: Verb, folder: Path, results: Path, data: Path) -> dict[str, object]:
    """Return the configurations and scripts of both chains with a conf/ folder, without their place."""
    for chain in CHAINS:
        stages = f"stages=[{','.join(choice.partition('=')[0] for choice in chain)}]"
        folders = [f"base_results_dir={results}", f"data_dir={data}", "preflight=off", "debug=True"]
        result = launch("--config-path", str(folder), stages, *chain, *folders)
        assert result.status == 0, result.err
        assert folder.name == "conf" or result.err == ""
    jobs: dict[str, object] = {}
    for path in results.rglob("*_hydra.yaml"):
        script = path.with_name(path.name.replace("_hydra.yaml", "_submission.sh"))
        texts = [file.read_text().replace(str(results), "") for file in (path, script)]
        jobs[path.name] = (yaml.safe_load(texts[0]), texts[1])
    return jobs


def test_presets_of_this_launcher_can_be_chosen_too(launch: Verb, console: Verb, workplace: Workplace, tmp_path: Path):
    assert console("migrate", write_tree(tmp_path / "conf")).status == 0
    given = ["stages=[adapter_learning,evaluation]", "adapter_learning=gpt3/squad", "evaluation=adapter_gpt3/squad"]
    given += [f"base_results_dir={workplace.results}", "+preset=cpu", "preflight=off", "cluster_type=interactive"]
    result = launch("--config-path", str(tmp_path / "conf-migrated"), *given, "debug=True")
    assert result.status == 0, result.err
    (job,) = workplace.results.rglob("squad_gpt3_5b_hydra.yaml")
    assert yaml.safe_load(job.read_text())["trainer"]["accelerator"] == "cpu"


@pytest.mark.parametrize("method", sorted({method for method, _ in EVALUATIONS}))
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_evaluations_that_only_this_launcher_has_can_be_chosen_too(
    launch: Verb, console: Verb, workplace: Workplace, tmp_path: Path, method: str, family: str
) -> None:
    """NVIDIA's folder has no evaluation of a Llama, and its other files have no run.convert_dir."""
    assert console("migrate", write_tree(tmp_path / "conf")).status == 0
    given = ["stages=[evaluation]", f"evaluation={method}_{family}/squad", f"base_results_dir={workplace.results}"]
    given += [f"data_dir={tmp_path}/data", "preflight=off", "cluster_type=bcm", "debug=True"]
    result = launch("--config-path", str(tmp_path / "conf-migrated"), *given)
    assert (result.status, result.err) == (0, "")
    (job,) = workplace.results.rglob("*_hydra.yaml")
    assert yaml.safe_load(job.read_text())["language_model_path"].endswith(
        f"convert_nemo/results/megatron_{family}.nemo"
    )


def test_every_change_is_printed_and_in_the_differences(console: Verb, tmp_path: Path) -> None:
    old = write_tree(tmp_path / "conf", first=True)
    out = console("migrate", old, "--output", tmp_path / "mine").out
    for line in (
        "config.yaml\n",
        "    training_config: left out: no stage reads it",
        "    defaults.evaluation: is now adapter_gpt3/squad",
        "    stages: is now adapter_learning",
        "    hydra.searchpath: is new",
        "    trainer.replace_sampler_ddp: is now trainer.use_distributed_sampler",
        "    data.test_ds: is now data_paths",
        "    data.num_workers: left out: inference.batch_size is the number of prompts",
        "cluster/bcm.yaml: as it is",
        "4 files have no counterpart here, of: conversion, evaluation, export, training",
        f"to use them: --config-path {tmp_path / 'mine'}",
    ):
        assert line in out
    difference = (tmp_path / "mine" / DIFF_NAME).read_text()
    assert "--- old/evaluation/ia3_t5/squad.yaml\n+++ new/evaluation/ia3_t5/squad.yaml\n" in difference
    assert "-  replace_sampler_ddp: false\n+  use_distributed_sampler: false\n" in difference
    assert not (tmp_path / "mine/training").exists()


COMMENTED = """# my evaluation
data: # test data
  # the files
  test_ds:
    - /d/test.jsonl # one
  num_workers: 1

# sizes
tensor_model_parallel_size: 1 # of the base
gpt_model_file: /b.nemo # mine
"""


def test_comments_stay() -> None:
    found = migrate_file("evaluation/adapter_gpt3/mine.yaml", COMMENTED)
    assert found is not None
    assert found.text == (
        "# my evaluation\n\n# sizes\ntensor_model_parallel_size: 1 # of the base\n"
        "language_model_path: /b.nemo # mine\ndata_paths:\n- /d/test.jsonl\n"
    )


def test_what_is_left_to_do(console: Verb, tmp_path: Path) -> None:
    section = learning("adapter_learning", "gpt3")
    section["model"] |= {"fp8": True, "megatron_amp_O2": True, "micro_batchsize": 4}
    write_group(tmp_path / "conf", "adapter_learning", "gpt3/mine", section)
    write_group(tmp_path / "conf", "evaluation", "adapter_t5/mine", evaluation("adapter", "t5") | {"data": {"x": 1}})
    text = 'gpt_model_file: /b\nadapter_model_file: "${evaluation.gpt_model_file}.a"\n'
    text += "trainer: {log_every_n_steps: 5, devices: 1}\n"
    (tmp_path / "conf/evaluation/adapter_t5/other.yaml").write_text(text)
    done = console("migrate", tmp_path / "conf")
    assert done.status == 0, done.err
    for line in (
        "megatron_amp_O2: left out: adapters train in fp32",
        "to do: adapter_learning.model.fp8: must be False",
        "to do: adapter_learning.model.micro_batchsize: unknown key\n        -> did you mean",
        "to do: evaluation.data: unknown key",
        "to do: trainer.log_every_n_steps: is in braces, and was not changed: left out",
        "to do: evaluation.gpt_model_file: another value refers to it, but it is now language_model_path",
    ):
        assert line in done.out
    written = yaml.safe_load((tmp_path / "conf-migrated/adapter_learning/gpt3/mine.yaml").read_text())
    assert written["model"]["fp8"] is True  # the launch refuses it
    assert "megatron_amp_O2" not in written["model"]


def test_nothing_is_written_after_a_mistake(console: Verb, tmp_path: Path) -> None:
    old = write_tree(tmp_path / "conf")
    (tmp_path / "there").mkdir()
    (tmp_path / "empty").mkdir()
    for arguments, told in [
        ([old, "--output", tmp_path / "there"], "exists already; nothing was changed"),
        ([old, "--output", old / "new"], "is inside the old folder"),
        ([tmp_path / "absent"], "no such folder"),
        ([tmp_path / "empty"], "has no file of adapter_learning"),
    ]:
        done = console("migrate", *arguments)
        assert done.status == 2
        assert told in done.err
    for name, text in (("adapter_learning/gpt3/squad", "run: [\n"), ("evaluation/ia3_t5/squad", "a: 1\na: 2\n")):
        (old / f"{name}.yaml").write_text(text)
    done = console("migrate", old)
    assert done.status == 2
    assert f"{old}/adapter_learning/gpt3/squad.yaml: is not valid YAML" in done.err
    assert f"{old}/evaluation/ia3_t5/squad.yaml: is not valid YAML" in done.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["conf", "empty", "there"]


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("a: 1\nb: 2\n", "a", "b: 2\n"),
        ("a:\n  b: 1\nc: 2\n", "a.b", "c: 2\n"),
        ("a:\n  b: |\n    x\n    y\n  # z\n  c: 2\n", "a.b", "a:\n  # z\n  c: 2\n"),
        ("a:\n  b: {x: 1,\n      y: 2}\n  c: 3\n", "a.b", "a:\n  c: 3\n"),
        ("a: [1,\n  2]\nb:\n", "a", "b:\n"),
        ("a: 1\r\nb: 2\r\n", "b", "a: 1\r\n"),
    ],
)
def test_a_key_is_removed_with_its_lines(text: str, path: str, expected: str) -> None:
    assert yaml_edits.removed(text, tuple(path.split("."))) == expected


def test_keys_that_cannot_be_removed() -> None:
    with pytest.raises(KeyError):
        yaml_edits.removed("a: 1\n", ("b",))
    with pytest.raises(ValueError, match="in braces"):
        yaml_edits.removed("a: {b: 1, c: 2}\n", ("a", "b"))
