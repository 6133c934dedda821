# SPDX-License-Identifier: Apache-2.0
"""The stages: inputs, outputs and scripts. A new stage is a class here, a schema and a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_launcher import places
from nemo_launcher.adapters.peft import METHODS
from nemo_launcher.checkpoint.hub_model import title_of
from nemo_launcher.config import sections
from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.sections.learning import Ia3Model, LearningTrainer
from nemo_launcher.config.sections.other import ConversionTrainer, EvaluationTrainer
from nemo_launcher.evaluation.file_names import written_names
from nemo_launcher.launcher.from_hub import FromHub
from nemo_launcher.launcher.hub_models import SOURCE, ModelFromHub, with_hub_model
from nemo_launcher.launcher.stage import Input, Output, Stage
from nemo_launcher.runtime.earlier_training import CHECKPOINTS


class DataPreparation(Stage):
    """Prepare a task's JSONL files as a job; learning stages do the same at launch if needed."""

    name = "data_preparation"
    script = "prepare_data.py"
    section: sections.DataPreparation

    @property
    def task_name(self) -> str:
        return self.section.run.task_name

    def outputs(self) -> list[Path]:
        return [Path(self.section.output_dir) / name for name in DATASETS[self.section.run.task_name].files]

    def writes(self) -> list[Output]:
        return [Output(self.key("output_dir"), path, "data") for path in self.outputs()]


class Conversion(Stage):
    """Convert a Hugging Face model into a .nemo archive."""

    name = "conversion_hf2nemo"
    script = "convert_hf2nemo.py"
    section: sections.Conversion

    @property
    def trainer(self) -> ConversionTrainer | None:
        return self.section.trainer

    @property
    def source(self) -> Path:
        """The Hugging Face folder or GGUF file."""
        return Path(self.section.model.hf_model_path)

    @property
    def source_title(self) -> str:
        """The model's name in the base that is made from it."""
        return title_of(self.source) if self.hub_model is None else self.hub_model.source.title

    @property
    def hub_model(self) -> ModelFromHub | None:
        """The model of the hub that it converts; None for a model on this machine."""
        return next((one for one in self.from_hub if isinstance(one, ModelFromHub)), None)

    def localized(self, section: dict[str, object]) -> tuple[dict[str, object], Sequence[FromHub]]:
        return with_hub_model(section, self.data_dir.absolute())

    def pinned(self) -> dict[str, object]:
        found = None if self.hub_model is None else self.hub_model.fetched()
        return {} if found is None else {SOURCE: str(found.path)}

    def inputs(self) -> list[Input]:
        if self.hub_model is not None and not self.hub_model.is_fetched():
            return []
        path = self.source
        fix = "give a Hugging Face folder or a .gguf file, or the name of a model on the Hugging Face Hub (OWNER/NAME)"
        if "smollm2" in path.name.lower():
            fix = f"run `{places.fetch_base_model()}`"
        return [Input(self.key(SOURCE), path, "source", "Hugging Face model", fix)]

    def outputs(self) -> list[Path]:
        return [Path(self.section.model.nemo_path)]

    def writes(self) -> list[Output]:
        return [Output(self.key("model.nemo_path"), path, "base") for path in self.outputs()]


class Learning(Stage):
    """Train the parameters that are added to a frozen model."""

    script = "train.py"
    section: sections.Learning

    @property
    def task_name(self) -> str:
        return self.section.run.task_name

    @property
    def trainer(self) -> LearningTrainer:
        return self.section.trainer

    @property
    def wants_wandb(self) -> bool:
        return self.section.exp_manager.create_wandb_logger

    @property
    def parallel(self) -> Ia3Model:
        return self.section.model

    @property
    def family(self) -> str | None:
        return self.choice.split("/")[0]

    def inputs(self) -> list[Input]:
        model = self.section.model
        needed = [_base_model(self, "model.language_model_path", model.language_model_path)]
        restored = model.restore_path
        if restored is not None and (Path(restored).exists() or not self.resumes()):
            fix = f"to start from new weights: {self.key('model.restore_path')}=null"
            needed.append(
                Input(self.key("model.restore_path"), Path(restored), "adapter", "archive to start from", fix)
            )
        return needed

    def resumes(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        manager = self.section.exp_manager
        own = manager.resume_if_exists and any((Path(manager.explicit_log_dir) / CHECKPOINTS).glob("*.ckpt"))
        return own or bool(self.section.trainer.resume_from_checkpoint)

    def data_files(self) -> list[tuple[str, Path]]:
        data = self.section.model.data
        files = {"train_ds": data.train_ds, "validation_ds": data.validation_ds}
        return [(self.key(f"model.data.{key}"), Path(path)) for key, paths in files.items() for path in paths]

    def test_files(self) -> list[tuple[str, Path]]:
        tests = self.section.model.data.test_ds or []
        return [(self.key("model.data.test_ds"), Path(path)) for path in tests]

    def knows_records(self) -> bool:
        """Return whether its records can be known: some of its files are there, or the launcher prepares them."""
        return self.preparation() is not None or any(path.exists() for _, path in self.data_files())

    def reads(self) -> list[tuple[str, Path]]:
        checkpoint = self.section.trainer.resume_from_checkpoint
        read = [(self.key("trainer.resume_from_checkpoint"), Path(checkpoint))] if checkpoint else []
        return super().reads() + read

    def outputs(self) -> list[Path]:
        return [Path(self.section.model.nemo_path)]

    def writes(self) -> list[Output]:
        key, path = self.key("model.nemo_path"), Path(self.section.model.nemo_path)
        written = [Output(key, path, "adapter"), Output(key, path.with_suffix(".safetensors"))]
        manager, cache = self.section.exp_manager, self.section.model.data.cache_dir
        logs, saved = Path(manager.explicit_log_dir), manager.checkpoint_callback_params
        written.append(Output(self.key("exp_manager.explicit_log_dir"), logs, "folder"))
        if saved.always_save_nemo or saved.save_nemo_on_train_end:
            copy = logs / CHECKPOINTS / f"{manager.name or 'default'}.nemo"
            written.append(Output(self.key("exp_manager.name"), copy, "copy"))
        if isinstance(cache, str):
            written.append(Output(self.key("model.data.cache_dir"), Path(cache), "cache"))
        return written


class AdapterLearning(Learning):
    """Train adapters."""

    name = "adapter_learning"


class Ia3Learning(Learning):
    """Train IA3 vectors."""

    name = "ia3_learning"


class Evaluation(Stage):
    """Generate answers to a test set with a trained adapter and score them."""

    name = "evaluation"
    script = "evaluate.py"

    section: sections.Evaluation

    @property
    def task_name(self) -> str:
        return self.section.run.task_name

    @property
    def trainer(self) -> EvaluationTrainer:
        return self.section.trainer

    def chosen_facts(self) -> dict[str, str | None]:
        return super().chosen_facts() | ({"method": self.method} if self.method in METHODS else {})

    @property
    def family(self) -> str | None:
        return self.choice.split("/")[0].partition("_")[2]

    @property
    def parallel(self) -> sections.Evaluation:
        return self.section

    @property
    def method(self) -> str:
        """adapter or ia3"""
        return self.choice.partition("_")[0]

    def inputs(self) -> list[Input]:
        learning = f"{self.method}_learning"
        fix = f"run stages=[{learning},evaluation]"
        path = Path(self.section.adapter_model_file)
        adapter = Input(self.key("adapter_model_file"), path, "adapter", "trained archive", fix)
        return [_base_model(self, "language_model_path", self.section.language_model_path), adapter]

    def data_files(self) -> list[tuple[str, Path]]:
        files = [(self.key("data_paths"), Path(path)) for path in self.section.data_paths]
        truth = self.section.ground_truth_file_path
        return files if truth is None else [*files, (self.key("ground_truth_file_path"), Path(truth))]

    def reads(self) -> list[tuple[str, Path]]:
        summary = self.section.training_summary_path
        return super().reads() + ([(self.key("training_summary_path"), Path(summary))] if summary else [])

    def outputs(self) -> list[Path]:
        return [Path(self.section.pred_file_path)]

    def writes(self) -> list[Output]:
        key, path = self.key("pred_file_path"), Path(self.section.pred_file_path)
        names = written_names(path.name, self._replicas(), compares=self.section.compare_with_base)
        written = [Output(key, path.with_name(name)) for name in names]
        for name in ("summary_path", "report_path"):
            chosen = getattr(self.section, name)
            written += [Output(self.key(name), Path(chosen))] if chosen else []
        return written

    def _replicas(self) -> int:
        """Return the number of model replicas that generate answers in parallel."""
        of_one = self.section.tensor_model_parallel_size * self.section.pipeline_model_parallel_size
        return max(1, self.devices * self.num_nodes // of_one)


def _base_model(stage: Learning | Evaluation, key: str, path: str) -> Input:
    fix = f"set the path of your archive: {stage.key(key)}=/path/to/model.nemo"
    family = FAMILIES.get(stage.family or "")
    if family is not None:
        model = stage.section.run.model_train_name or "my_model"
        fix += (
            f"; or convert a model: put conversion_hf2nemo first in stages, with conversion_hf2nemo={family.converter} "
            f"conversion_hf2nemo.run.model_train_name={model} conversion_hf2nemo.model.hf_model_path=/path/to/model"
        )
    title = f"{family.title} base model" if family is not None else "base model"
    return Input(stage.key(key), Path(path), "base", title, fix)


STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (DataPreparation, Conversion, AdapterLearning, Ia3Learning, Evaluation)
}
