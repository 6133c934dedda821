# SPDX-License-Identifier: Apache-2.0
"""Scripts that are only written: their order, and the variable of tensor-parallel jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit
CHAIN = ("stages=[adapter_learning,evaluation]", "preflight=off")
TENSOR = ("adapter_learning.model.tensor_model_parallel_size=2", "adapter_learning.trainer.devices=2")
ON_GPU = "adapter_learning.trainer.accelerator=gpu"
EXPORT = "export CUDA_DEVICE_MAX_CONNECTIONS="


def scripts(place: Workplace) -> tuple[Path, Path]:
    folder = place.results / "gpt3_5b"
    names = ("adapter_learning_squad/squad_gpt3_5b", "adapter_learning_squad_eval/eval_squad_gpt3_5b")
    first, second = (folder / f"{name}_submission.sh" for name in names)
    return first, second


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "sbatch --dependency=afterok:ID,singleton "),
        (["dependency=afterany", "evaluation.run.dependency=null"], "sbatch --dependency=afterany:ID "),
        (["evaluation.run.dependency=afterok"], "sbatch --dependency=afterok:ID "),
    ],
)
def test_the_order_on_slurm(given: list[str], expected: str, launch: Launch, workplace: Workplace) -> None:
    assert launch(*workplace.arguments, *CHAIN, *given, "cluster_type=bcm", "debug=True").status == 0
    first, second = scripts(workplace)
    assert "by hand" not in first.read_text()
    lines = second.read_text().splitlines()
    assert f"# by hand: {expected}{second}" in lines
    assert f"# with the ID that sbatch prints for {first}" in lines
    assert all(line.startswith("#") for line in lines[: lines.index(f"# by hand: {expected}{second}")])


@pytest.mark.parametrize("cluster_type", ["bcp", "interactive"])
def test_the_order_elsewhere(cluster_type: str, launch: Launch, workplace: Workplace) -> None:
    assert launch(*workplace.arguments, *CHAIN, f"cluster_type={cluster_type}", "debug=True").status == 0
    first, second = scripts(workplace)
    assert f"# by hand: run this script when {first} has succeeded" in second.read_text().splitlines()


@pytest.mark.parametrize("cluster_type", ["bcm", "bcp"])
def test_kernels_of_tensor_parallel_ranks_start_in_order(
    cluster_type: str, launch: Launch, workplace: Workplace
) -> None:
    launched = (*workplace.arguments, "preflight=off", f"cluster_type={cluster_type}", "debug=True")
    assert launch(*launched, *TENSOR, ON_GPU).status == 0
    first, _ = scripts(workplace)
    text = first.read_text()
    assert f"{EXPORT}1" in text.splitlines()
    assert cluster_type != "bcp" or "declare -px CUDA_DEVICE_MAX_CONNECTIONS NCCL_DEBUG TRANSFORMERS_OFFLINE" in text
    for others in ([ON_GPU], [*TENSOR]):
        assert launch(*launched, *others).status == 0
        assert EXPORT not in first.read_text()
    assert launch(*launched, *TENSOR, ON_GPU, "+env_vars.CUDA_DEVICE_MAX_CONNECTIONS=8").status == 0
    assert f"{EXPORT}8" in first.read_text().splitlines()
