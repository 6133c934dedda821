# SPDX-License-Identifier: Apache-2.0
"""`layers`: what may be written, what is refused with which fix, and what is compared and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, new_adapters, save_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.methods.bottleneck.config import ParallelAdapterSettings
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.config.layers import chosen_layers, comparable, range_problems, stack_problems
from nemo_launcher.config.load import complete
from nemo_launcher.config.resume_rules import refused_changes
from nemo_launcher.config.schema import check
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect, readable
from tests import t5
from tests.engine import BOTTLENECK, adapted, tiny_gpt_nemo
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit

WHERE = "model.adapter_tuning"


def block(layers: Any) -> dict[str, Any]:
    return {"type": "parallel_adapter", "adapter_dim": 4, "layers": layers}


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("12-29", "12-29"),
        ("12 - 29", "12-29"),
        ("0,3,12-14", "0,3,12-14"),
        (5, "5"),
        ([0, 3, "12-14"], "0,3,12-14"),
        ([14, "13", 3, "12-14", 0, 3], "0,3,12-14"),
        ("0,1,2", "0-2"),
        ("0-9,3-5,2", "0-9"),
        ("none, 3", None),
        ({"encoder": "7,4-6", "decoder": "all"}, {"encoder": "4-7", "decoder": "all"}),
        ({"encoder": [], "decoder": 3}, {"encoder": "none", "decoder": "3"}),
        ({"encoder": "none", "decoder": [2, 1]}, {"encoder": "none", "decoder": "1-2"}),
    ],
)
def test_equal_selections_are_stored_alike(written: Any, normal: Any) -> None:
    if normal is None:
        assert check(block(written), ParallelAdapterSettings, WHERE)
        return
    assert check(block(written), ParallelAdapterSettings, WHERE) == []
    stored = complete(block(written), ParallelAdapterSettings)
    assert stored["layers"] == normal
    assert complete(stored, ParallelAdapterSettings) == stored


@pytest.mark.parametrize("written", ["all", " All ", ["all"]])
def test_all_layers_are_not_mentioned(written: Any) -> None:
    """Archives and records of trainings without the option stay what they were."""
    without = complete({"type": "parallel_adapter", "adapter_dim": 4}, ParallelAdapterSettings)
    assert complete(block(written), ParallelAdapterSettings) == without


def test_another_selection_is_another_training() -> None:
    """A job resumes if the selection is written in another way, and not if it is another one."""

    def model(layers: Any) -> dict[str, Any]:
        return {"model": {"adapter_tuning": complete(block(layers), ParallelAdapterSettings)}}

    assert refused_changes(model("all"), model("1-2")) == ["model.adapter_tuning.layers"]
    assert refused_changes(model([2, "1"]), model("1-2")) == []


@pytest.mark.parametrize(
    ("written", "what", "fix"),
    [
        ("29-12", "the range 29-12 is reversed", "12-29"),
        (-1, "-1 is negative: layers count from 0", "all"),
        ("3,-2", "-2 is negative", "3"),
        ("x", "'x' is not a number", "all"),
        ("1,,2", "'' is not a number", "1-2"),
        ("5-3,x,-1", "the range 5-3 is reversed; 'x' is not a number such as 3, or a range", "3-5"),
        ([], "selects no layer", "all"),
        ("none", "selects no layer", "all"),
        (["all", 3], "'all' is not a number", "3"),
        (None, "must be all, a number, a range", "all"),
        (True, "must be all, a number, a range", "all"),
        (5.5, "must be all, a number, a range", "all"),
        ("9" * 5000, "is not a number such as 3", "all"),
        ({"encoder": "none", "decoder": []}, "selects no layer of either stack", {"encoder": "all", "decoder": "all"}),
    ],
)
def test_what_is_wrong_is_named_with_a_valid_value(written: Any, what: str, fix: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (problem,) = check(block(written), ParallelAdapterSettings, WHERE)
    assert problem.where == f"{WHERE}.layers"
    assert what in problem.what
    (override,) = OverridesParser.create().parse_overrides([problem.fix.strip("'")])
    assert override.value() == fix
    assert check(block(override.value()), ParallelAdapterSettings, WHERE) == []


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ({"encoder": "x", "decoder": "5-3"}, ["encoder", "decoder"]),
        ({"encoder": "1"}, ["decoder"]),
        ({"encoder": "1", "decoder": "2", "middle": 3}, ["middle"]),
    ],
)
def test_each_stack_is_checked(written: Any, where: list[str]) -> None:
    problems = check(block(written), ParallelAdapterSettings, WHERE)
    assert [problem.where for problem in problems] == [f"{WHERE}.layers.{stack}" for stack in where]


@pytest.mark.parametrize(
    ("selection", "fix"),
    [([1, 3, 4], 'layers="0,2-3"'), (None, "leave it out"), ("upper", "layers=all"), ([0, 3], "layers=all")],
)
def test_nemos_key_counts_from_1(selection: Any, fix: str) -> None:
    given = {"type": "parallel_adapter", "adapter_dim": 4, "layer_selection": selection}
    (problem,) = check(given, ParallelAdapterSettings, WHERE)
    assert problem.where == f"{WHERE}.layer_selection"
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("layers", "counts", "chosen"),
    [
        ("all", {"decoder": 3}, [{0, 1, 2}]),
        ("0,2", {"decoder": 3}, [{0, 2}]),
        ("1-2", {"encoder": 3, "decoder": 4}, [{1, 2}, {1, 2}]),
        ({"encoder": "none", "decoder": "3"}, {"encoder": 3, "decoder": 4}, [set(), {3}]),
    ],
)
def test_layers_that_get_adapters(layers: Any, counts: dict[str, int], chosen: list[set[int]]) -> None:
    settings = ParallelAdapterSettings.from_block(block(layers))
    assert [chosen_layers(settings.layers, *item) for item in counts.items()] == chosen
    assert range_problems(settings.layers, counts, WHERE) == []


@pytest.mark.parametrize(
    ("layers", "counts", "what", "fix"),
    [
        ("1-5", {"decoder": 4}, "the base has no layer 4-5: its 4 layers are 0-3", '"1-3"'),
        ("0-999999999", {"decoder": 4}, "no layer 4-999999999", '"0-3"'),
        (9, {"decoder": 4}, "no layer 9", "=all"),
        ("3", {"encoder": 4, "decoder": 2}, "the decoder has no layer 3", '{encoder: "3", decoder: none}'),
        (
            {"encoder": "5", "decoder": "0-6"},
            {"encoder": 4, "decoder": 2},
            "no layer 5: its 4 layers are 0-3; the dec",
            "",
        ),
    ],
)
def test_layers_that_the_base_lacks(layers: Any, counts: dict[str, int], what: str, fix: str) -> None:
    settings = ParallelAdapterSettings.from_block(block(layers))
    (problem,) = range_problems(settings.layers, counts, "layers")
    assert what in problem.what
    assert fix in problem.fix


def test_a_gpt_has_no_encoder() -> None:
    settings = ParallelAdapterSettings.from_block(block({"encoder": "2", "decoder": "none"}))
    (problem,) = stack_problems(settings.layers, 1, "layers")
    assert problem.what == "names encoder and decoder, but a GPT has one stack of layers"
    assert problem.fix == "'layers=\"2\"'"
    assert stack_problems(settings.layers, 2, "layers") == []


@pytest.mark.parametrize(
    ("one", "other", "counts"),
    [
        ("0-3", "all", {"decoder": 4}),
        ("1", {"encoder": "1", "decoder": [1]}, {"encoder": 4, "decoder": 4}),
        ({"encoder": "0-3", "decoder": "1"}, {"encoder": "all", "decoder": "1"}, {"encoder": 4, "decoder": 4}),
    ],
)
def test_selections_of_the_same_layers_are_equal(one: Any, other: Any, counts: dict[str, int]) -> None:
    found = [comparable(ParallelAdapterSettings.from_block(block(layers)).layers, counts) for layers in (one, other)]
    assert found[0] == found[1]


# --- jobs and archives ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers."""
    return tiny_gpt_nemo(tmp_path_factory.mktemp("deep") / "base.nemo", num_hidden_layers=4)


@pytest.mark.parametrize("method", METHODS)
def test_training_starts_from_the_same_layers_alone(method: str, deep_base: Path, tmp_path: Path) -> None:
    config = model_section(method, layers="1-2")
    _, adapters = adapted(deep_base, config)
    save_adapter(tmp_path / "a.nemo", config, adapters.state_dict())
    path = str(tmp_path / "a.nemo")
    started = new_adapters(load_base(deep_base), model_section(method, layers=[2, 1]) | {"restore_path": path})
    torch.testing.assert_close(started.state_dict(), adapters.state_dict(), rtol=0, atol=0)
    for asked, words in ({"layers": "2-3"}, "is 2-3"), ({}, "is all"):
        with pytest.raises(UserError, match=rf"_tuning\.layers: {words}, but the adapter in .*a\.nemo has 1-2") as e:
            new_adapters(load_base(deep_base), model_section(method, **asked) | {"restore_path": path})
        assert 'layers="1-2"' in e.value.problems[0].fix


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_that_contradicts_itself_is_refused(method: str, deep_base: Path, tmp_path: Path) -> None:
    state = adapted(deep_base, model_section(method, layers="1-2"))[1].state_dict()
    for layers, words in (
        ("2", r"a\.nemo: .*layers\.1.*: is in a layer without adapters: \w+\.layers is 2"),
        ("1-3", r"a\.nemo: .*layers\.3.*: is absent"),
        ("3-9", r"a\.nemo: \w+\.layers: the base has no layer 4-9"),
        ("2-1", r"a\.nemo: \w+\.layers: the range 2-1 is reversed"),
    ):
        save_adapter(tmp_path / "a.nemo", model_section(method, layers=layers), state)
        with pytest.raises(UserError, match=words):
            load_adapter(tmp_path / "a.nemo", load_base(deep_base))


def test_inspect_names_the_layers(deep_base: Path, tmp_path: Path) -> None:
    for layers, said in ({"layers": "1-2"}, "1-2"), ({}, "all"):
        config = {"language_model_path": str(deep_base), "adapter_tuning": BOTTLENECK | layers}
        save_adapter(tmp_path / "a.nemo", config, adapted(deep_base, config)[1].state_dict())
        facts = inspect(tmp_path / "a.nemo")
        assert facts["layers"] == said
        assert f"layers{said:>{24 + len(said)}}" in readable(facts)


def test_a_job_is_told_which_layers_are_missing(deep_base: Path, tmp_path: Path) -> None:
    for config, words in (
        ({"adapter_tuning": BOTTLENECK | {"layers": 4}}, r"model\.adapter_tuning\.layers: the base has no layer 4"),
        ({"ia3_tuning": {"layers": "2-7"}}, r"model\.ia3_tuning\.layers: the base has no layer 4-7"),
        ({"ia3_tuning": {"layers": {"encoder": 1, "decoder": 1}}}, r"ia3_tuning\.layers: names encoder and decoder"),
    ):
        with pytest.raises(UserError, match=words):
            new_adapters(load_base(deep_base), config)


def test_stacks_of_a_t5_are_chosen_apart(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "t5.nemo", seed=3))
    layers = {"encoder": "none", "decoder": "1"}
    adapters = AdapterSet(base.model, base.shape, {"ia3_tuning": {"layers": layers}})
    assert {key.partition(".self")[0].partition(".inter")[0].partition(".mlp")[0] for key in adapters.adapters} == {
        "decoder:model.layers.1"
    }
    assert settings_of({"ia3_tuning": {"layers": layers}}).chosen_layers("encoder", 2) == frozenset()
