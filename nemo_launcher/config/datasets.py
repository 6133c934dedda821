# SPDX-License-Identifier: Apache-2.0
"""The table of datasets that can be prepared, for the launcher and for data.preparation, which writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset and the JSON Lines files that it is prepared into."""

    name: str
    """The value of `run.task_name` and the prefix of the file names."""
    title: str
    """Its name in messages."""
    builder: str
    """`module:class`, the data.preparation.DatasetBuilder that writes the files."""

    @property
    def train(self) -> str:
        """The file to train on."""
        return f"{self.name}_train.jsonl"

    @property
    def validation(self) -> str:
        """The file to validate on."""
        return f"{self.name}_val.jsonl"

    @property
    def test(self) -> str:
        """The questions of an evaluation, without answers."""
        return f"{self.name}_test.jsonl"

    @property
    def ground_truth(self) -> str:
        """The same questions with all correct answers."""
        return f"{self.name}_test_ground_truth.jsonl"

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all four."""
        return (self.train, self.validation, self.test, self.ground_truth)


_PUBLISHED = "nemo_launcher.data.published_sets"
_ALL = (
    Dataset("squad", "SQuAD", "nemo_launcher.data.squad:SquadBuilder"),
    Dataset("boolq", "BoolQ", f"{_PUBLISHED}:BoolQBuilder"),
    Dataset("rte", "RTE", f"{_PUBLISHED}:RTEBuilder"),
    Dataset("sst2", "SST-2", f"{_PUBLISHED}:SST2Builder"),
    Dataset("cnn_dailymail", "CNN/DailyMail", f"{_PUBLISHED}:CNNDailyMailBuilder"),
    Dataset("multirc", "MultiRC", f"{_PUBLISHED}:MultiRCBuilder"),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def dataset_of_file(name: str) -> Dataset | None:
    """Return the dataset that a file with this name belongs to; None for a user's own file."""
    return next((dataset for dataset in DATASETS.values() if name in dataset.files), None)


if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = Literal[tuple(DATASETS)]
