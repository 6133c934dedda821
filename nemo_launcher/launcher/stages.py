# SPDX-License-Identifier: Apache-2.0
"""The stages: what each one reads, makes and runs. A new one is a class here, a schema and a configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nemo_launcher import places
from nemo_launcher.adapters import sections
from nemo_launcher.adapters.peft import METHODS
from nemo_launcher.config.datasets import DATASETS, Dataset
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.load import complete
from nemo_launcher.evaluation.file_names import written_names
from nemo_launcher.runtime.earlier_training import CHECKPOINTS


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
    """What messages call it."""
    fix: str
    """How to come by one."""


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage writes."""

    key: str
    """The full key that its path comes from."""
    path: Path
    """The file or folder."""
    kind: str = "file"
    """base or adapter (an archive), file, data (prepared task data), folder (one training's), cache (a folder that any
    number of jobs share), copy (of the adapter, among the checkpoints)."""


@dataclass(frozen=True)
class Preparation:
    """A dataset that can be prepared at launch."""

    dataset: Dataset
    """Which one."""
    source_dir: Path
    """The folder with its original files."""
    output_dir: Path
    """The folder for the prepared files."""


class Stage:
    """One step of a run, built from its configuration section."""

    name: ClassVar[str]
    script: ClassVar[str]

    def __init__(self, section: dict[str, object], choice: str, data_dir: str) -> None:
        self.config: dict[str, Any] = complete(section, sections.STAGES[self.name])
        self.choice = choice
        self.data_dir = Path(data_dir)
        if self.family in FAMILIES:
            self.run.setdefault("model_family", self.family)

    @property
    def run(self) -> dict[str, Any]:
        """The `run` section."""
        run: dict[str, Any] = self.config["run"]
        return run

    @property
    def job_name(self) -> str:
        """What the job's files are called."""
        return str(self.run["name"])

    @property
    def folder(self) -> Path:
        """The job folder."""
        return Path(self.run["results_dir"])

    @property
    def trainer(self) -> dict[str, Any]:
        """The `trainer` section; empty for a stage that needs one process."""
        return self.config.get("trainer") or {}

    @property
    def devices(self) -> int:
        """Processes on each node."""
        return int(self.trainer.get("devices", 1))

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return int(self.trainer.get("num_nodes", 1))

    @property
    def family(self) -> str | None:
        """The model family that the chosen file belongs to; None for a stage without a model."""
        return None

    @property
    def wants_wandb(self) -> bool:
        """Whether the job logs to Weights & Biases."""
        return bool((self.config.get("exp_manager") or {}).get("create_wandb_logger"))

    def key(self, path: str) -> str:
        """The full key of a key of this stage."""
        return f"{self.name}.{path}"

    @property
    def parallel_section(self) -> dict[str, Any]:
        """The section with the parallel sizes."""
        section: dict[str, Any] = self.config.get("model", self.config)
        return section

    def parallel_key(self, name: str) -> str:
        """The full key of one of the parallel sizes."""
        return self.key(f"model.{name}" if "model" in self.config else name)

    def command(self, launcher_scripts: Path, config_file: Path) -> list[str]:
        """The script to run and its one argument."""
        return [str(launcher_scripts / self.script), str(config_file)]

    def inputs(self) -> list[Input]:
        """Models that have to be there, or to be an earlier stage's output."""
        return []

    def data_files(self) -> list[tuple[str, Path]]:
        """JSONL files that have to be there, with the keys that name them; some can be prepared at launch."""
        return []

    def outputs(self) -> list[Path]:
        """What the stage leaves when it has worked."""
        return []

    def reads(self) -> list[tuple[str, Path]]:
        """Everything that the stage reads, with the keys that name it."""
        return [(needed.key, needed.path) for needed in self.inputs()] + self.data_files()

    def writes(self) -> list[Output]:
        """Everything that the stage writes but the job's own files, whether it has to be there in the end or not."""
        return []

    def preparation(self) -> Preparation | None:
        """How the stage's data files can be prepared at launch; None when they are the user's own."""
        paths = [path for _, path in self.data_files()]
        dataset = DATASETS.get(str(self.run.get("task_name")))
        if dataset is None or not paths:
            return None
        if len({path.parent for path in paths}) > 1 or any(path.name not in dataset.files for path in paths):
            return None
        return Preparation(dataset, self.data_dir, paths[0].parent)


class DataPreparation(Stage):
    """Prepares a task's JSONL files as a job; the learning stages do the same at launch when they need to."""

    name = "data_preparation"
    script = "prepare_data.py"

    def outputs(self) -> list[Path]:
        return [Path(self.config["output_dir"]) / name for name in DATASETS[self.run["task_name"]].files]

    def writes(self) -> list[Output]:
        return [Output(self.key("output_dir"), path, "data") for path in self.outputs()]


class Conversion(Stage):
    """Makes a .nemo archive of a Hugging Face model."""

    name = "conversion_hf2nemo"
    script = "convert_hf2nemo.py"

    @property
    def source(self) -> Path:
        """The Hugging Face folder or GGUF file."""
        return Path(self.config["model"]["hf_model_path"])

    def inputs(self) -> list[Input]:
        path = self.source
        fix = "give a Hugging Face folder or a .gguf file"
        if "smollm2" in path.name.lower():
            fix = f"run `{places.fetch_base_model()}`"
        elif not path.is_absolute() and len(path.parts) == 2:  # a name on the Hub, which is never asked
            fix = f"download it (hf download {path} --local-dir FOLDER) and name the folder"
        return [Input(self.key("model.hf_model_path"), path, "source", "Hugging Face model", fix)]

    def outputs(self) -> list[Path]:
        return [Path(self.config["model"]["nemo_path"])]

    def writes(self) -> list[Output]:
        return [Output(self.key("model.nemo_path"), path, "base") for path in self.outputs()]


class Learning(Stage):
    """Trains what is added to a frozen model."""

    script = "train.py"

    @property
    def family(self) -> str | None:
        return self.choice.split("/")[0]

    def inputs(self) -> list[Input]:
        model = self.config["model"]
        needed = [_base_model(self, "model.language_model_path", model["language_model_path"])]
        restored = model["restore_path"]
        if restored is not None and (Path(restored).exists() or not self._goes_on()):
            fix = f"null starts afresh: {self.key('model.restore_path')}=null"
            needed.append(
                Input(self.key("model.restore_path"), Path(restored), "adapter", "archive to go on from", fix)
            )
        return needed

    def _goes_on(self) -> bool:
        """Whether there is a checkpoint to go on from, which holds all that training begins with."""
        manager = self.config["exp_manager"]
        logs = manager.get("explicit_log_dir")
        own = bool(logs) and manager.get("resume_if_exists", True) and any((Path(logs) / CHECKPOINTS).glob("*.ckpt"))
        return bool(own or self.trainer.get("resume_from_checkpoint"))

    def data_files(self) -> list[tuple[str, Path]]:
        data = self.config["model"]["data"]
        keys = ("train_ds", "validation_ds")
        return [(self.key(f"model.data.{key}"), Path(path)) for key in keys for path in data[key]]

    def reads(self) -> list[tuple[str, Path]]:
        checkpoint = self.trainer.get("resume_from_checkpoint")
        read = [(self.key("trainer.resume_from_checkpoint"), Path(checkpoint))] if checkpoint else []
        return super().reads() + read

    def outputs(self) -> list[Path]:
        return [Path(self.config["model"]["nemo_path"])]

    def writes(self) -> list[Output]:
        key, path = self.key("model.nemo_path"), Path(self.config["model"]["nemo_path"])
        written = [Output(key, path, "adapter"), Output(key, path.with_suffix(".safetensors"))]
        manager, cache = self.config["exp_manager"], self.config["model"]["data"].get("cache_dir")
        logs, saved = manager.get("explicit_log_dir"), manager.get("checkpoint_callback_params") or {}
        if logs:
            written.append(Output(self.key("exp_manager.explicit_log_dir"), Path(logs), "folder"))
        if logs and (saved.get("always_save_nemo") or saved.get("save_nemo_on_train_end")):
            copy = Path(logs) / CHECKPOINTS / f"{manager.get('name') or 'default'}.nemo"
            written.append(Output(self.key("exp_manager.name"), copy, "copy"))
        if isinstance(cache, str):
            written.append(Output(self.key("model.data.cache_dir"), Path(cache), "cache"))
        return written


class AdapterLearning(Learning):
    """Trains adapters."""

    name = "adapter_learning"


class Ia3Learning(Learning):
    """Trains IA3 vectors."""

    name = "ia3_learning"


class Evaluation(Stage):
    """Answers a test set with a trained adapter, and scores the answers."""

    name = "evaluation"
    script = "evaluate.py"

    def __init__(self, section: dict[str, object], choice: str, data_dir: str) -> None:
        super().__init__(section, choice, data_dir)
        if self.method in METHODS:
            self.run.setdefault("method", self.method)

    @property
    def family(self) -> str | None:
        return self.choice.split("/")[0].partition("_")[2]

    @property
    def method(self) -> str:
        """adapter or ia3"""
        return self.choice.partition("_")[0]

    def inputs(self) -> list[Input]:
        learning = f"{self.method}_learning"
        fix = f"run stages=[{learning},evaluation]"
        path = Path(self.config["adapter_model_file"])
        adapter = Input(self.key("adapter_model_file"), path, "adapter", "trained archive", fix)
        return [_base_model(self, "language_model_path", self.config["language_model_path"]), adapter]

    def data_files(self) -> list[tuple[str, Path]]:
        files = [(self.key("data_paths"), Path(path)) for path in self.config["data_paths"]]
        truth = self.config["ground_truth_file_path"]
        return files if truth is None else [*files, (self.key("ground_truth_file_path"), Path(truth))]

    def reads(self) -> list[tuple[str, Path]]:
        summary = self.config.get("training_summary_path")
        return super().reads() + ([(self.key("training_summary_path"), Path(summary))] if summary else [])

    def outputs(self) -> list[Path]:
        return [Path(self.config["pred_file_path"])]

    def writes(self) -> list[Output]:
        key, path = self.key("pred_file_path"), Path(self.config["pred_file_path"])
        names = written_names(path.name, self._replicas(), compares=self.config["compare_with_base"])
        written = [Output(key, path.with_name(name)) for name in names]
        summary = self.config.get("summary_path")
        return written + ([Output(self.key("summary_path"), Path(summary))] if summary else [])

    def _replicas(self) -> int:
        """How many copies of the model answer side by side."""
        of_one: int = self.config["tensor_model_parallel_size"] * self.config["pipeline_model_parallel_size"]
        return max(1, self.devices * self.num_nodes // max(1, of_one))


def _base_model(stage: Stage, key: str, path: str) -> Input:
    fix = f"name your archive: {stage.key(key)}=/path/to/model.nemo"
    family = FAMILIES.get(stage.family or "")
    if family is not None:
        model = stage.run.get("model_train_name", "my_model")
        fix += (
            f"; or make one: put conversion_hf2nemo first in stages, with conversion_hf2nemo={family.converter} "
            f"conversion_hf2nemo.run.model_train_name={model} conversion_hf2nemo.model.hf_model_path=/path/to/model"
        )
    title = f"{family.title} base model" if family is not None else "base model"
    return Input(stage.key(key), Path(path), "base", title, fix)


STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (DataPreparation, Conversion, AdapterLearning, Ia3Learning, Evaluation)
}
