# SPDX-License-Identifier: Apache-2.0
"""Outputs in a running script: what it refuses, claims, locks and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters import sections
from nemo_launcher.adapters.sections import AdapterLearning
from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.locks import place_of_file
from nemo_launcher.launcher import outputs
from nemo_launcher.launcher.claims import claims_file
from nemo_launcher.launcher.stages import STAGES
from tests.archives import write_adapter, write_base
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit


def _section(launch: Launch, workplace: Workplace, *changes: str) -> dict[str, Any]:
    """Return the section that the launcher passes to train.py."""
    import yaml

    assert launch(*workplace.arguments, *changes, "debug=True").status == 0
    file = workplace.results / "gpt3_5b/adapter_learning_squad/squad_gpt3_5b_hydra.yaml"
    return dict(yaml.safe_load(file.read_text()))


def test_the_script_refuses_what_was_not_there_at_launch(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    path = write_adapter(Path(section["model"]["nemo_path"]))
    before = path.read_bytes()
    with (
        pytest.raises(UserError, match="already exists, and this job did not make it"),
        outputs.held_outputs(section, AdapterLearning, leader=True),
    ):
        pass
    assert path.read_bytes() == before


def test_the_script_refuses_an_edited_configuration(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    section["model"]["nemo_path"] = section["model"]["language_model_path"]
    with (
        pytest.raises(UserError, match="would be overwritten"),
        outputs.held_outputs(section, AdapterLearning, leader=True),
    ):
        pass
    assert read_config(workplace.base_model)


def test_what_a_script_began_belongs_to_its_job(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    path = Path(section["model"]["nemo_path"])
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        write_adapter(path)
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        pass
    # even if the results were moved
    claims = claims_file(STAGES["adapter_learning"](section, "", ""))
    assert json.loads(claims.read_text())["outputs"][0] == "results/megatron_gpt_adapter.nemo"
    # but a base in its place is a foreign file
    write_base(path)
    with pytest.raises(UserError, match="did not make it"), outputs.held_outputs(section, AdapterLearning, leader=True):
        pass


def test_what_a_script_claimed_and_did_not_make_is_not_its_own(launch: Launch, workplace: Workplace) -> None:
    """A refused job, followed by a foreign adapter at the path that it did not write."""
    section = _section(launch, workplace)
    with pytest.raises(UserError, match="no base"), outputs.held_outputs(section, AdapterLearning, leader=True):
        raise UserError(Problem("base.nemo", "no base"))
    adapter = write_adapter(Path(section["model"]["nemo_path"]))
    with pytest.raises(UserError, match="did not make it"), outputs.held_outputs(section, AdapterLearning, leader=True):
        adapter.unlink()
    assert adapter.exists()


def test_two_jobs_never_write_one_folder_at_once(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    other = json.loads(json.dumps(section))
    other["run"]["results_dir"] = str(workplace.root / "other")
    other["model"]["nemo_path"] = str(workplace.root / "other.nemo")
    script = (
        "import sys, json; from nemo_launcher.launcher import outputs; from nemo_launcher.adapters.sections import *\n"
    )
    script += "with outputs.held_outputs(json.loads(sys.argv[1]), AdapterLearning, leader=True): print('both')"
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        import subprocess
        import sys

        second = subprocess.run(
            [sys.executable, "-c", script, json.dumps(other)], capture_output=True, text=True, check=False
        )
    assert second.stdout == ""
    assert "is in use by a job" in second.stderr


def test_a_file_has_one_lock_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.nemo").symlink_to("b/m.nemo")
    names = ["a.nemo", "b/m.nemo", "b/M.nemo", "b/../a.nemo", "b/\N{FULLWIDTH LATIN SMALL LETTER M}.nemo"]
    assert len({place_of_file(tmp_path / name) for name in names}) == 1
    assert place_of_file(tmp_path / "b/n.nemo") != place_of_file(tmp_path / "b/m.nemo")


def test_what_one_process_of_a_job_has_made_another_does_not_take_out(launch: Launch, workplace: Workplace) -> None:
    """Two manual runs with the same configuration file but their own outputs."""
    section = _section(launch, workplace)
    adapter = Path(section["model"]["nemo_path"])
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        claims_file(STAGES["adapter_learning"](section, "", "")).unlink()
        write_adapter(adapter)
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        pass


def test_a_folder_of_everything_is_not_searched(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    deep = workplace.root / "many/a/b/c"
    deep.mkdir(parents=True)
    (deep / "x.ckpt").touch()
    section["exp_manager"]["explicit_log_dir"] = str(workplace.root / "many")
    with outputs.held_outputs(section, AdapterLearning, leader=True):
        pass
    claims_file(STAGES["adapter_learning"](section, "", "")).write_text('{"outputs": []}')
    (deep / "x.ckpt").rename(workplace.root / "many/a/x.ckpt")
    with (
        pytest.raises(UserError, match="results of another"),
        outputs.held_outputs(section, AdapterLearning, leader=True),
    ):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"outputs": 3}', b'{"outputs": [3, "\\u0000", "x"]}', b"\xff", b"[" * 999]
)
def test_a_damaged_record_of_outputs_claims_nothing(launch: Launch, workplace: Workplace, content: bytes) -> None:
    section = _section(launch, workplace)
    claims_file(STAGES["adapter_learning"](section, "", "")).write_bytes(content)
    write_adapter(Path(section["model"]["nemo_path"]))
    with pytest.raises(UserError, match="did not make it"), outputs.held_outputs(section, AdapterLearning, leader=True):
        pass


def test_every_stage_declares_what_has_to_be_there_in_the_end(launch: Launch, workplace: Workplace) -> None:
    section = _section(launch, workplace)
    stage = STAGES["adapter_learning"](section, "", "")
    assert set(stage.outputs()) <= {output.path for output in stage.writes()}
    assert {key for key, _ in stage.reads()} >= {"adapter_learning.model.language_model_path"}
    assert sections.STAGES.keys() == STAGES.keys()
    assert Evaluation in {sections.STAGES[name] for name in STAGES}
