# SPDX-License-Identifier: Apache-2.0
"""`layers` from the command line to the job's configuration, for each method and family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.archives import GPT, write_base
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

SIZES = GPT | {"num_layers": 6}
BASES: dict[str, dict[str, Any]] = {
    "gpt3": SIZES,
    "t5": {"encoder": GPT, "decoder": SIZES, "max_position_embeddings": 512, "tokenizer": GPT["tokenizer"]},
}


def launched(launch: Launch, workplace: Workplace, stage: str, family: str, *given: str) -> Any:
    base = write_base(workplace.root / f"{family}.nemo", BASES[family])
    arguments = [text for text in workplace.arguments if not text.startswith(("stages", "adapter_learning"))]
    return launch(
        *arguments,
        f"stages=[{stage}]",
        f"{stage}={family}/squad",
        f"{stage}.model.language_model_path={base}",
        *given,
        "debug=True",
    )


def section(results: Path, block: str) -> Any:
    (file,) = results.rglob("*_hydra.yaml")
    return yaml.safe_load(file.read_text())["model"].get(block)


@pytest.mark.parametrize(
    ("family", "given", "stored"),
    [
        ("gpt3", "layers=2-5", "2-5"),
        ("gpt3", "layers=3", "3"),
        ("gpt3", "layers=[5,0,2-3]", "0,2-3,5"),
        ("gpt3", 'layers="5,0"', "0,5"),
        ("gpt3", "layers=all", None),
        ("t5", "layers=1-2", "1-2"),
        ("t5", "layers={encoder: none, decoder: 4-5}", {"encoder": "none", "decoder": "4-5"}),
        ("t5", "layers={encoder: [3], decoder: []}", {"encoder": "3", "decoder": "none"}),
    ],
)
@pytest.mark.parametrize(("stage", "block"), [("adapter_learning", "adapter_tuning"), ("ia3_learning", "ia3_tuning")])
def test_a_selection_reaches_the_job(
    stage: str, block: str, family: str, given: str, stored: Any, launch: Launch, workplace: Workplace
) -> None:
    result = launched(launch, workplace, stage, family, f"{stage}.model.{block}.{given}")
    assert result.status == 0, result.err
    found = section(workplace.results, block)
    assert (found or {}).get("layers") == stored
    assert (found is None) == (stage == "ia3_learning" and stored is None)


@pytest.mark.parametrize(
    ("family", "given", "what", "fix"),
    [
        ("gpt3", "layers=4-9", "the base has no layer 6-9: its 6 layers are 0-5", 'layers="4-5"'),
        ("t5", "layers=5", "the encoder has no layer 5: its 4 layers are 0-3", '{encoder: none, decoder: "5"}'),
        ("gpt3", "layers={encoder: 1, decoder: 2}", "a GPT has one stack of layers", 'layers="2"'),
        ("t5", "layers={encoder: none, decoder: []}", "selects no layer of either stack", "encoder: all"),
    ],
)
@pytest.mark.parametrize(("stage", "block"), [("adapter_learning", "adapter_tuning"), ("ia3_learning", "ia3_tuning")])
def test_a_selection_that_does_not_fit_is_refused_at_launch(
    stage: str, block: str, family: str, given: str, what: str, fix: str, launch: Launch, workplace: Workplace
) -> None:
    result = launched(launch, workplace, stage, family, f"{stage}.model.{block}.{given}")
    assert result.status == 2
    assert f"{stage}.model.{block}.layers" in result.err
    assert what in result.err
    assert fix in result.err


def test_an_unknown_stack_is_answered_with_the_stacks(launch: Launch, workplace: Workplace) -> None:
    given = "adapter_learning.model.adapter_tuning.layers={encoder: 1, decoder: 2, cross: 3}"
    result = launched(launch, workplace, "adapter_learning", "t5", given)
    assert result.status == 2
    assert "adapter_learning.model.adapter_tuning.layers has: encoder, decoder\n" in result.err


def test_one_stack_in_a_section_and_the_other_by_its_own_key(launch: Launch, workplace: Workplace) -> None:
    key = "adapter_learning.model.adapter_tuning.layers"
    result = launched(launch, workplace, "adapter_learning", "t5", f"{key}={{encoder: 1}}", f"{key}.decoder=none")
    assert result.status == 0, result.err
    assert section(workplace.results, "adapter_tuning")["layers"] == {"encoder": "1", "decoder": "none"}
    for value, what in (("9", "the decoder has no layer 9"), ("-1", "-1 is negative")):
        result = launched(
            launch, workplace, "adapter_learning", "t5", f"{key}={{encoder: 1}}", f"{key}.decoder={value}"
        )
        assert result.status == 2
        assert what in result.err


def test_a_missing_stack_may_be_none(launch: Launch, workplace: Workplace) -> None:
    key = "adapter_learning.model.adapter_tuning.layers"
    result = launched(launch, workplace, "adapter_learning", "t5", f"{key}={{encoder: 1}}")
    assert result.status == 2
    assert f"{key}.decoder (command line): missing\n    -> set it to none, all, a number" in result.err
