# SPDX-License-Identifier: Apache-2.0
"""The base class of the stages, with the files that a stage reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemo_launcher.adapters.sections import STAGES, StageSection
from nemo_launcher.config import sections
from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.datasets import DATASETS, Dataset
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.load import complete, load_checked
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.sections.learning import Ia3Model, LearningTrainer
from nemo_launcher.config.sections.other import ConversionTrainer, EvaluationTrainer
from nemo_launcher.launcher.from_hub import FromHub
from nemo_launcher.launcher.hub_data import RECORDED, localized, recorded


@dataclass(frozen=True)
class Input:
    """A file that a stage needs."""

    key: str
    """The full key that names it."""
    path: Path
    """The file."""
    kind: str
    """base (a base model), adapter (a trained adapter) or source (a Hugging Face model)."""
    title: str
    """Its name in messages."""
    fix: str
    """How to obtain it."""


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage writes."""

    key: str
    """The full key that determines its path."""
    path: Path
    """The file or folder."""
    kind: str = "file"
    """base or adapter (an archive), file, data (prepared task data), folder (of one training), cache (shared by any
    number of jobs), copy (of the adapter, in the checkpoint folder)."""


@dataclass(frozen=True)
class Preparation:
    """A dataset that can be prepared at launch."""

    dataset: Dataset
    """The dataset."""
    source_dir: Path
    """The folder with its original files."""
    output_dir: Path
    """The folder for the prepared files."""


class Stage:
    """One step of a run, built from its configuration section."""

    name: ClassVar[str]
    script: ClassVar[str]

    section: StageSection
    """The stage's configuration."""
    assumed: Sequence[str] = ()
    """Lines on what the launcher has filled in: templates of records without one, test data."""

    def __init__(self, section: dict[str, object], choice: str, data_dir: str) -> None:
        self.choice = choice
        self.data_dir = Path(data_dir)
        schema = STAGES[self.name]
        section, self.from_hub = self.localized(section)
        self.config = complete(section, schema)
        for key, value in self.chosen_facts().items():
            self.config["run"].setdefault(key, value)
        self.config = with_values(self.config, self.pinned())
        self.section = load_checked(self.config, schema).section

    def localized(self, section: dict[str, object]) -> tuple[dict[str, object], Sequence[FromHub]]:
        """Return the section with local files in place of names on the hub, and what a launch fetches for them."""
        return localized(section, self.data_dir.absolute())

    def pinned(self) -> dict[str, object]:
        """Return the values, by key of the section, that follow from what is fetched: commits and places."""
        return {f"run.{RECORDED}": recorded(self.from_hub)} if self.from_hub else {}

    def pin(self) -> None:
        """Take over what was fetched from the hub meanwhile."""
        values = self.pinned()
        if any(value_of(self.config, key) != value for key, value in values.items()):
            self.update(with_values(self.config, values))

    def update(self, config: dict[str, object]) -> None:
        """Replace the configuration by a checked one with other values."""
        self.config = config
        self.section = load_checked(config, STAGES[self.name]).section

    def chosen_facts(self) -> dict[str, str | None]:
        """Return the keys of the `run` section that follow from the choice of the file."""
        return {"model_family": self.family} if self.family in FAMILIES else {}

    @property
    def job_name(self) -> str:
        """The base name of the job's files."""
        return self.section.run.name

    @property
    def folder(self) -> Path:
        """The job folder."""
        return Path(self.section.run.results_dir)

    @property
    def task_name(self) -> str | None:
        """The dataset of its data files; None for a stage without data."""
        return None

    @property
    def trainer(self) -> LearningTrainer | EvaluationTrainer | ConversionTrainer | None:
        """The `trainer` section; None for a stage with a single process."""
        return None

    @property
    def devices(self) -> int:
        """Processes on each node."""
        return 1 if self.trainer is None else self.trainer.devices

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return 1 if self.trainer is None else self.trainer.num_nodes

    @property
    def accelerator(self) -> str:
        """The device type that it computes on."""
        trainer = self.trainer
        return "cpu" if trainer is None or isinstance(trainer, ConversionTrainer) else trainer.accelerator

    @property
    def family(self) -> str | None:
        """The model family that the chosen file belongs to; None for a stage without a model."""
        return None

    @property
    def wants_wandb(self) -> bool:
        """Whether the job logs to Weights & Biases."""
        return False

    def key(self, path: str) -> str:
        """Return the full key of a key in this stage's section."""
        return f"{self.name}.{path}"

    @property
    def parallel(self) -> Ia3Model | sections.Evaluation | None:
        """The section with the parallel sizes; None for a stage without them."""
        return None

    def parallel_key(self, name: str) -> str:
        """Return the full key of a parallel size."""
        return self.key(f"model.{name}" if isinstance(self.parallel, Ia3Model) else name)

    def command(self, launcher_scripts: Path, config_file: Path) -> list[str]:
        """Return the script to run and its only argument."""
        return [str(launcher_scripts / self.script), str(config_file)]

    def inputs(self) -> list[Input]:
        """Return the models that must exist or be an earlier stage's output."""
        return []

    def data_files(self) -> list[tuple[str, Path]]:
        """Return (key, path) of the JSONL files that must exist, be prepared at launch or be an earlier output."""
        return []

    def test_files(self) -> list[tuple[str, Path]]:
        """Return (key, path) of data files that the stage names but does not read."""
        return []

    def outputs(self) -> list[Path]:
        """Return the files that exist after the stage has succeeded."""
        return []

    def reads(self) -> list[tuple[str, Path]]:
        """Return (key, path) of everything that the stage reads."""
        return [(needed.key, needed.path) for needed in self.inputs()] + self.data_files()

    def writes(self) -> list[Output]:
        """Return everything that the stage may write, except the job's own files."""
        return []

    def preparation(self) -> Preparation | None:
        """Return how to prepare the stage's data files at launch; None if they are the user's."""
        paths = [path for _, path in self.data_files()]
        dataset = DATASETS.get(self.task_name or "")
        if dataset is None or not paths:
            return None
        if len({path.parent for path in paths}) > 1 or any(path.name not in dataset.files for path in paths):
            return None
        return Preparation(dataset, self.data_dir, paths[0].parent)
