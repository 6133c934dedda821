# SPDX-License-Identifier: Apache-2.0
"""`+preset=NAME`: values for small data and for a CPU, in every learning stage and family; the user's own win."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_launcher.places import CONF
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

PRESETS = sorted(path.stem for path in (CONF / "preset").glob("*.yaml"))
FAMILIES = ("gpt3", "llama", "t5")
STAGES = ("adapter_learning", "ia3_learning")


@pytest.fixture
def dry(launch: Launch, workplace: Workplace) -> Any:
    """Dry runs without any override of sizes; returns the sections that jobs would get, by stage."""

    def run(*arguments: str) -> dict[str, Any]:
        given = [*workplace.arguments[:2], "preflight=off", "debug=True", *arguments]
        result = launch(*given)
        assert result.status == 0, result.err
        found = {}
        for path in workplace.results.rglob("*_hydra.yaml"):
            folder = path.parent.name
            found["evaluation" if folder.endswith("_eval") else folder.removesuffix("_squad")] = yaml.safe_load(
                path.read_text()
            )
        return found

    return run


def sizes_of(section: dict[str, Any]) -> tuple[Any, ...]:
    sizes = section.get("model", section)
    trainer = section["trainer"]
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    of_trainer = (trainer[name] for name in ("devices", "num_nodes", "accelerator", "precision"))
    return (*of_trainer, *(sizes[name] for name in names))


def test_the_presets() -> None:
    assert PRESETS == ["cpu", "default", "few_shot", "small"]


@pytest.mark.parametrize(("stage", "family"), list(product(STAGES, FAMILIES)))
def test_a_cpu(dry: Any, stage: str, family: str) -> None:
    """Training and evaluation run in one process, as they say in the files that both jobs would get."""
    method = stage.partition("_")[0]
    chosen = [f"{stage}={family}/squad", f"evaluation={method}_{family}/squad"]
    found = dry(f"stages=[{stage},evaluation]", *chosen, "+preset=cpu")
    assert found.keys() == {stage, "evaluation"}
    assert {sizes_of(section) for section in found.values()} == {(1, 1, "cpu", 32, 1, 1)}


@pytest.mark.parametrize(("stage", "family", "preset"), list(product(STAGES, FAMILIES, ("few_shot", "small"))))
def test_small_data(dry: Any, stage: str, family: str, preset: str) -> None:
    """The batch fits the shipped eight devices; with a CPU, a replica takes it at once."""
    wanted = {"few_shot": (8, 20), "small": (16, 8)}[preset]
    chosen = [f"stages=[{stage}]", f"{stage}={family}/squad"]
    section = dry(*chosen, f"+preset={preset}")[stage]
    assert (section["model"]["global_batch_size"], section["trainer"]["max_epochs"]) == wanted
    assert section["trainer"]["val_check_interval"] == 1.0
    section = dry(*chosen, f"+preset=[{preset},cpu]")[stage]
    assert (section["model"]["micro_batch_size"], section["trainer"]["devices"]) == (wanted[0], 1)


def test_the_default_changes_nothing(dry: Any) -> None:
    assert dry("+preset=default") == dry()


def test_the_users_own_values_win(dry: Any) -> None:
    own = ["adapter_learning.trainer.max_epochs=3", "adapter_learning.model.global_batch_size=32"]
    for arguments in ([*own, "+preset=small"], ["+preset=small", *own]):
        section = dry(*arguments)["adapter_learning"]
        assert (section["trainer"]["max_epochs"], section["model"]["global_batch_size"]) == (3, 32)
        assert section["trainer"]["val_check_interval"] == 1.0


@pytest.mark.parametrize("written", [["preset=small", "preset=cpu"], ["++preset=[small,cpu]"], ["+preset=[small,cpu]"]])
def test_however_it_is_written(dry: Any, written: list[str]) -> None:
    section = dry(*written)["adapter_learning"]
    assert (section["model"]["global_batch_size"], section["trainer"]["accelerator"]) == (16, "cpu")


def test_a_misspelt_preset(launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, "preset=fewshot")
    assert result.status == 2
    assert "did you mean 'few_shot'?" in result.err


def test_the_name_is_not_secret(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job folders hold the command line, with what may be secret masked."""
    assert launch(*workplace.arguments, "+preset=small", "debug=True").status == 0
    assert any("preset=small" in path.read_text() for path in Path(workplace.results).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("arguments", "told", "fix"),
    [
        (["+preset=cpu", "+preset=smal"], "conf/preset has no file smal", "+preset=[cpu,small]"),
        (["+preset=[few_shots,cpu]"], "conf/preset has no file few_shots", "+preset=[few_shot,cpu]"),
        (["+task=[boolq,rte]"], "chooses one task, not 2", "+task=boolq"),
        (["+task=boolq", "task=rte"], "chooses one task, not 2", "+task=boolq"),
    ],
)
def test_a_wrong_choice_is_told_with_one_that_works(
    launch: Launch, workplace: Workplace, arguments: list[str], told: str, fix: str
) -> None:
    given = [*workplace.arguments, "debug=True", "preflight=off"]
    result = launch(*given, *arguments)
    assert (result.status, told in result.err) == (2, True), result.err
    assert f"-> {fix}" in result.err
    assert launch(*given, fix).status == 0


@pytest.mark.parametrize("arguments", [["task=boolq"], ["+task=boolq", "++task=boolq"], ["+task=[boolq]"]])
def test_a_task_may_be_written_in_other_ways(dry: Any, arguments: list[str]) -> None:
    assert dry(*arguments) == dry("+task=boolq")
