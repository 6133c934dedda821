# SPDX-License-Identifier: Apache-2.0
"""`container_runtime=apptainer`: the script runs with stand-ins that accept only what srun and apptainer accept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workplace import Launch, Workplace, executable

pytestmark = pytest.mark.unit
SRUN = """
while [ "$1" != apptainer ]; do
    case "$1" in
        --output|--error) shift 2;;
        --open-mode=append|--gpu-bind=none|--mpi=none) shift;;
        *) echo "srun: unrecognized option '$1'" >&2; exit 1;;
    esac
done
SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"
"""
APPTAINER = """
[ "$1" = exec ] || { echo "Error for command \\"$1\\": unknown command" >&2; exit 1; }
shift
while [ "${1#--}" != "$1" ]; do
    case "$1" in
        --nv) shift;;
        --bind)
            IFS=, read -ra pairs <<< "$2"
            for pair in "${pairs[@]}"; do
                [ -e "${pair%%:*}" ] || { echo "FATAL: mount source ${pair%%:*} doesn't exist" >&2; exit 255; }
            done
            echo "$2" > "$TRACE.bind"; shift 2;;
        *) echo "Error for command \\"exec\\": unknown flag: $1" >&2; exit 1;;
    esac
done
[ -f "$1" ] || { echo "FATAL: could not open image $1" >&2; exit 255; }
echo "$1" > "$TRACE.image"
shift
exec "$@"
"""


@pytest.fixture
def image(workplace: Workplace) -> Path:
    path = workplace.root / "image file.sif"
    path.write_text("image")
    return path


def launched(launch: Launch, place: Workplace, image: object, *more: str) -> tuple[int, str]:
    given = ["cluster_type=bcm", "container_runtime=apptainer", f"container='{image}'", "debug=True", *more]
    result = launch(*place.arguments, *given)
    return result.status, result.err


def test_a_job_runs_in_the_image(launch: Launch, workplace: Workplace, image: Path, plain_path: Path) -> None:
    extra = workplace.root / "more data"
    for folder in (extra, workplace.root / "data", workplace.results):
        folder.mkdir(exist_ok=True)
    mounts = f"container_mounts=['{workplace.root}','{extra}']"
    more = (mounts, f"data_dir={workplace.root}/data", 'cluster.srun_args=["--mpi=none"]')
    assert launched(launch, workplace, image, *more)[0] == 0
    tools, trace = workplace.root / "bin", workplace.root / "trace"
    executable(tools / "srun", SRUN)
    executable(tools / "apptainer", APPTAINER)
    executable(tools / "scontrol", "echo node1")
    executable(tools / "python3", f'exec {sys.executable} "$@"')
    (script,) = workplace.results.rglob("*_submission.sh")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment = os.environ | slurm | {"PATH": f"{tools}:{plain_path}", "TRACE": str(trace)}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "trained" in done.stdout) == (0, True), done.stderr
    assert Path(f"{trace}.image").read_text() == f"{image}\n"
    mounted = Path(f"{trace}.bind").read_text().strip().split(",")
    assert {f"{workplace.scripts}:{workplace.scripts}", f"{extra}:{extra}"} <= set(mounted)


def test_gpus_are_passed_on(launch: Launch, workplace: Workplace, image: Path) -> None:
    for accelerator, options in (("gpu", "apptainer exec --nv --bind "), ("cpu", "apptainer exec --bind ")):
        more = (f"adapter_learning.trainer.accelerator={accelerator}", f"container_mounts=['{workplace.root}']")
        assert launched(launch, workplace, image, *more)[0] == 0
        (script,) = workplace.results.rglob("*_submission.sh")
        assert options in script.read_text()
        assert "--container-image" not in script.read_text()


def test_an_image_that_is_not_there_is_told(launch: Launch, workplace: Workplace) -> None:
    mounts = f"container_mounts=['{workplace.root}']"
    status, err = launched(launch, workplace, "nvcr.io/nvidia/pytorch:25.01-py3", mounts)
    assert status == 2
    assert "container=docker://nvcr.io/nvidia/pytorch:25.01-py3" in err
    assert launched(launch, workplace, "docker://nvcr.io/nvidia/pytorch:25.01-py3", mounts)[0] == 0
