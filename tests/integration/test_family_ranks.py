# SPDX-License-Identifier: Apache-2.0
"""Two tensor-parallel ranks and two pipeline stages compute what one process computes, for every architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_launcher.conversion.convert import convert
from tests import t5
from tests.conformance.families.models import FAMILIES, ONE_OF_EACH, save, sees_images
from tests.integration.test_parallel_steps import Steps
from tests.world import TOLERANCE, Case

pytestmark = pytest.mark.integration

_OTHERS = {"falcon-one_key": "falcon-groups", "bloom-plain": "bloom-heads"}
"""Configurations for two ranks where one key cannot be split, and with slopes of ALiBi that do not halve evenly."""
_NAMES = [*(_OTHERS.get(name, name) for name in ONE_OF_EACH if not sees_images(FAMILIES[name])), "falcon-alibi"]
"""A base from a multi-modal model is one of a text model's architecture."""
_SEQUENCE = [name for name in _NAMES if name.startswith(("olmo2", "gemma3", "gptneox", "bloom", "mixtral"))]
"""Those whose layers differ most; they are also run with sequence parallelism."""

_UMT5 = "umt5"
"""Each of its layers has a table of relative positions."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("families")
    cases = {}
    for name in (*_NAMES, _UMT5):
        if name == _UMT5:
            t5.save_t5(folder / name, kind="UMT5", num_decoder_layers=2, num_heads=4)
        else:
            save(folder / name, FAMILIES[name])
        convert(folder / name, folder / f"{name}.nemo")
        case = Case(folder / f"{name}.nemo", "t5" if name == _UMT5 else "gpt", "ia3", batches=(5,))
        cases |= {f"{name}-tp2": replace(case, tensor=2), f"{name}-pp2": replace(case, pipeline=2)}
        if name in _SEQUENCE:
            cases[f"{name}-sequence"] = replace(case, tensor=2, options={"sequence_parallel": True})
    return Steps(2, cases, folder)


def assert_same_gradients(steps: Steps, name: str) -> None:
    """Compare a step's loss and gradients; Adam would amplify differences of gradients near zero."""
    (wanted,) = steps.single(name)["steps"]
    for results in steps.results:
        (found,) = results[list(steps.cases).index(name)]["steps"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        torch.testing.assert_close(found["gradients"], wanted["gradients"], **TOLERANCE)


@pytest.mark.parametrize("sizes", ["tp2", "pp2"])
@pytest.mark.parametrize("name", [*_NAMES, _UMT5])
def test_two_ranks_are_one_process(name: str, sizes: str, steps: Steps) -> None:
    assert_same_gradients(steps, f"{name}-{sizes}")


@pytest.mark.parametrize("name", _SEQUENCE)
def test_sequence_parallel_ranks_are_one_process(name: str, steps: Steps) -> None:
    assert_same_gradients(steps, f"{name}-sequence")
