# SPDX-License-Identifier: Apache-2.0
"""A dataset is an entry and a builder: the schema, the launcher's checks and the preparation read them."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.config.datasets import DATASETS, Dataset
from nemo_launcher.config.sections.other import DataPreparationRun
from nemo_launcher.data.preparation import DatasetBuilder, Report, Rows, Sources, builder_of, manifest_name
from nemo_launcher.errors import Problem, UserError
from tests.workplace import REPOSITORY, Result, Workplace

pytestmark = pytest.mark.unit
Launch = Callable[..., Result]

CAPITALS = Dataset("capitals", "Capitals", f"{__name__}:CapitalsBuilder")


class CapitalsBuilder(DatasetBuilder):
    """Another dataset, with one original file."""

    dataset = CAPITALS

    def find(self, source_dir: Path, output_dir: Path) -> Sources | None:
        path = source_dir / "capitals.json"
        return {"all": path} if path.is_file() else None

    def fetch(self, source_dir: Path, output_dir: Path, *, download: bool, report: Report) -> Sources:
        raise UserError(Problem(str(source_dir), "holds no capitals.json", "put it there"))

    def read(self, sources: Sources, report: Report) -> Rows:
        capitals = json.loads(sources["all"].read_text())
        rows: list[dict[str, object]] = [
            {"taskname": "capitals", "question": country, "answer": city} for country, city in capitals.items()
        ]
        return dict.fromkeys(self.dataset.files, rows)


@pytest.fixture
def arguments(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training on the other dataset, none of whose files is there yet."""
    monkeypatch.setitem(DATASETS, "capitals", CAPITALS)
    data = "adapter_learning.model.data"
    files = {"train_ds": CAPITALS.train, "validation_ds": CAPITALS.validation}
    named = [f"{data}.{key}=[{workplace.root}/out/{name}]" for key, name in files.items()]
    return [*workplace.arguments, *named, f"data_dir={workplace.root}"]


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_has_its_builder_and_its_configuration(name: str) -> None:
    dataset = DATASETS[name]
    assert builder_of(dataset).dataset is dataset
    assert (REPOSITORY / "conf/data_preparation" / f"{name}.yaml").is_file()
    assert typing.get_args(typing.get_type_hints(DataPreparationRun)["task_name"]) == tuple(DATASETS)
    assert len(set(dataset.files)) == 4


def test_another_dataset_is_prepared_at_launch(workplace: Workplace, launch: Launch, arguments: list[str]) -> None:
    (workplace.root / "capitals.json").write_text('{"Poland": "Warsaw", "Peru": "Lima"}')
    result = launch(*arguments, "adapter_learning.run.task_name=capitals")
    assert result.status == 0, result.err
    assert f"Preparing Capitals from {workplace.root}/capitals.json" in result.out
    out = workplace.root / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*CAPITALS.files, manifest_name(CAPITALS)])
    rows = [json.loads(line) for line in (out / CAPITALS.train).read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["Warsaw", "Lima"]
    builder = builder_of(CAPITALS)
    assert builder.is_prepared(workplace.root, out)
    (workplace.root / "capitals.json").write_text('{"Peru": "Lima"}')
    assert not builder.is_prepared(workplace.root, out)


def test_the_task_that_would_prepare_absent_files_is_suggested(launch: Launch, arguments: list[str]) -> None:
    result = launch(*arguments)
    assert result.status == 2
    assert "let the launcher prepare Capitals: adapter_learning.run.task_name=capitals" in result.err
