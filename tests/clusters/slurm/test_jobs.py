# SPDX-License-Identifier: Apache-2.0
"""Repeated launches, reruns and cancelling on a Slurm that refuses or does not answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nemo_launcher.clusters import record as records
from nemo_launcher.clusters.process import HOST
from tests.clusters.fake_slurm import FakeSlurm
from tests.clusters.slurm.chain import complete, jobs_of, training_of
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.integration


def evaluation_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b/adapter_learning_squad_eval"


# --- refused, and launched again ----------------------------------------------------------------------------------


def test_a_chain_refused_in_the_middle_goes_on_by_the_same_command(
    fake: FakeSlurm, chain: Launch, console: Launch, workplace: Workplace
) -> None:
    (fake.root / "last").write_text("101")
    refused = chain()
    assert refused.status == 1
    assert "already queued: job 101" in refused.err
    assert [(j["stage"], j["state"]) for j in jobs_of(console, workplace)] == [
        ("adapter_learning", "pending"),
        ("evaluation", "not started"),
    ]
    (fake.root / "refuse").unlink()
    again = chain()
    assert again.status == 0, again.err
    assert "adapter_learning: skipped: adapter_learning squad_gpt3_5b (job 101) is pending" in again.out
    assert len(fake.submitted()) == 2
    assert "--dependency=afterok:101,singleton" in fake.submitted()[1]
    third = chain()
    assert (third.status, len(fake.submitted()), third.out.count("skipped")) == (0, 2, 2)


def test_rerun_onwards_goes_on_behind_the_active_predecessor(
    fake: FakeSlurm, chain: Launch, console: Launch, workplace: Workplace
) -> None:
    (fake.root / "last").write_text("101")
    chain()
    (fake.root / "refuse").unlink()
    again = console("rerun", evaluation_of(workplace), "--onwards")
    assert again.status == 0, again.err
    assert "--dependency=afterok:101,singleton" in fake.submitted()[1]
    for job_id in (101, 102):
        fake.set(job_id, "CANCELLED")
    both = console("rerun", training_of(workplace), "--onwards")
    assert both.status == 0, both.err
    assert ["--dependency=afterok:103,singleton" in line for line in fake.submitted()[2:]] == [False, True]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("afterok:150", "--dependency= "),
        ("afterok:150:151", "--dependency=afterok:151 "),
        ("afterok:150,singleton", "--dependency=singleton "),
        ("afterany:151+5", ""),
        ("afterok:150?afterok:151", "--dependency=afterok:151 "),
    ],
)
def test_a_rerun_does_not_wait_for_a_job_that_slurm_has_forgotten(
    fake: FakeSlurm, launch: Launch, console: Launch, workplace: Workplace, given: str, left: str
) -> None:
    fake.set(151, "RUNNING")
    (fake.root / "jobs/150").unlink(missing_ok=True)
    assert launch(*workplace.arguments, f"adapter_learning.run.dependency='{given}'").status == 0
    assert "--dependency" not in fake.submitted()[0]  # the script has it
    fake.set(int(fake.submitted()[0].split()[0]), "FAILED")
    again = console("rerun", training_of(workplace))
    assert again.status == 0, again.err
    if left:
        assert left in fake.submitted()[1]
        assert "no longer waits for job 150, which has left Slurm's queue" in again.out
    else:
        assert "--dependency" not in fake.submitted()[1]


def test_what_a_queued_job_is_to_write_is_not_written_by_another(
    fake: FakeSlurm, launch: Launch, workplace: Workplace
) -> None:
    shared = f"adapter_learning.model.nemo_path={workplace.root}/out/adapter.nemo"
    assert launch(*workplace.arguments, shared).status == 0
    elsewhere = [shared, f"adapter_learning.run.results_dir={workplace.results}/other"]
    refused = launch(*workplace.arguments, *elsewhere)
    assert refused.status == 2
    assert f"adapter_learning.model.nemo_path: {workplace.root}/out/adapter.nemo will be written by" in refused.err
    assert "adapter_learning squad_gpt3_5b (job 101)" in refused.err
    assert not (workplace.results / "other").exists()
    fake.set(101, "CANCELLED")
    assert launch(*workplace.arguments, *elsewhere).status == 0


def test_an_evaluation_does_not_run_on_what_a_failed_training_found(
    fake: FakeSlurm, chain: Launch, console: Launch, workplace: Workplace
) -> None:
    chain()
    fake.set(101, "FAILED")
    fake.set(102, "CANCELLED")
    alone = console("rerun", evaluation_of(workplace))
    assert (alone.status, len(fake.submitted())) == (2, 2)
    assert f"nemo-launcher rerun {training_of(workplace)} --onwards" in alone.err
    assert console("rerun", evaluation_of(workplace), "--force").status == 0


def test_a_complete_stage_is_skipped_until_its_inputs_change(
    fake: FakeSlurm, chain: Launch, workplace: Workplace
) -> None:
    chain()
    fake.set(101, "COMPLETED")
    fake.set(102, "FAILED")
    complete(workplace)
    again = chain()
    assert "adapter_learning: skipped: adapter_learning squad_gpt3_5b (job 101) is complete" in again.out
    assert "--dependency" not in fake.submitted()[2]  # only jobs with its own name are left to wait for
    fake.set(103, "FAILED")
    workplace.base_model.touch()
    assert "skipped" not in chain().out
    assert len(fake.submitted()) == 5


def test_a_pending_job_keeps_its_configuration(fake: FakeSlurm, chain: Launch, workplace: Workplace) -> None:
    chain()
    config = training_of(workplace) / "squad_gpt3_5b_hydra.yaml"
    before = config.read_text()
    for changed in (["adapter_learning.trainer.max_epochs=7"], ["adapter_learning.trainer.max_epochs=7", "debug=True"]):
        other = chain(*changed)
        assert other.status == 2
        assert f"nemo-launcher cancel {training_of(workplace)}" in other.err
    assert config.read_text() == before
    assert len(fake.submitted()) == 2


def test_a_refused_rerun_keeps_the_exit_status(
    fake: FakeSlurm, chain: Launch, console: Launch, workplace: Workplace
) -> None:
    chain()
    fake.set(101, "")
    status = training_of(workplace) / "squad_gpt3_5b_exit_status"
    status.write_text("3\n")
    (fake.root / "refuse").touch()
    assert console("rerun", training_of(workplace)).status == 1
    assert status.read_text() == "3\n"
    assert jobs_of(console, workplace)[0]["reason"] == "exit status 3"


def test_what_sbatch_would_refuse_is_told_before_a_folder_is_written(
    fake: FakeSlurm, chain: Launch, workplace: Workplace
) -> None:
    command = (
        (fake.tools / "sbatch").read_text().replace("|| exit 0", "|| { cat > /dev/null; echo no qos >&2; exit 1; }", 1)
    )
    (fake.tools / "sbatch").write_text(command)
    result = chain("cluster.qos=nope")
    assert (result.status, "sbatch rejects the job: no qos" in result.err) == (2, True)
    assert not workplace.results.exists()


def test_variables_of_the_shell_do_not_change_a_submission(
    fake: FakeSlurm, chain: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    sbatch = fake.tools / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("echo $id\n", 'echo "$SBATCH_PARTITION" > $0.seen; echo $id\n'))
    result = chain()
    assert result.status == 0
    assert "warning: SBATCH_PARTITION: is set in your shell but not used for the jobs" in result.err
    assert (fake.tools / "sbatch.seen").read_text() == "\n"


def test_singletons_of_other_folders_have_another_name(fake: FakeSlurm, launch: Launch, workplace: Workplace) -> None:
    for number in (1, 2):
        launch(*workplace.arguments, f"adapter_learning.run.results_dir={workplace.root}/folder{number}")
    names = [line.split()[1] for line in fake.submitted()]
    assert len(set(names)) == 2
    assert all(name.startswith("nemo-megatron-squad_gpt3_5b-") for name in names)


def test_a_job_that_a_killed_launcher_did_not_record_is_found(
    fake: FakeSlurm, chain: Launch, console: Launch, workplace: Workplace
) -> None:
    chain()
    record = records.read(training_of(workplace) / "squad_gpt3_5b_job.json")
    assert record is not None
    records.write(dataclasses.replace(record, job_id=None, logs=[], host=HOST, process=(2**22, "another boot:1")))
    assert [(job["job_id"], job["state"]) for job in jobs_of(console, workplace)] == [
        ("101", "pending"),
        ("102", "pending"),
    ]
    assert "(job 101) is pending" in chain().out
    assert len(fake.submitted()) == 2
    assert console("cancel", training_of(workplace)).status == 0
    assert (fake.root / "jobs/101").read_text() == "CANCELLED\n"
