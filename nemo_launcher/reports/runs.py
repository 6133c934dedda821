# SPDX-License-Identifier: Apache-2.0
"""The runs below a folder: each training and evaluation by its `<job>_hydra.yaml`, with the files that it wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_launcher.adapters.sections import STAGES, learning_section
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.errors import UserError, environment_message
from nemo_launcher.evaluation.file_names import (
    METRIC_NAME,
    OF_BASE,
    RECORDS_NAME,
    REPORT_NAME,
    figures_name,
    scores_name,
)
from nemo_launcher.files.foreign import first_line, load_json, parse_json, read_bytes
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.runtime.curve_file import CURVE_NAME, CurveContent, read_curve
from nemo_launcher.runtime.progress_file import SUMMARY_NAME
from nemo_launcher.runtime.provenance import PROVENANCE_NAME
from nemo_launcher.runtime.range_test_file import RANGE_TEST_NAME, RangeTestContent, read_range_test

CONFIG_SUFFIX = "_hydra.yaml"
MAX_RUNS = 1000
"""Maximum number of runs of one comparison."""
_MAX_DEPTH = 8


@dataclass(frozen=True)
class TrainingFiles:
    """What a training wrote into its results folder."""

    folder: Path
    """The results folder."""

    @cached_property
    def summary(self) -> Mapping[str, object]:
        """training_summary.json; {} without one."""
        return read_object(self.folder / SUMMARY_NAME)

    @cached_property
    def provenance(self) -> Mapping[str, object]:
        """provenance.json; {} without one."""
        return read_object(self.folder / PROVENANCE_NAME)

    @cached_property
    def curve(self) -> CurveContent:
        """training_curve.jsonl; empty without one."""
        return read_curve(self.folder / CURVE_NAME) or CurveContent()

    @cached_property
    def range_test(self) -> RangeTestContent | None:
        """learning_rate_test.json; None without one."""
        return read_range_test(self.folder / RANGE_TEST_NAME)


@dataclass(frozen=True)
class Run:
    """A training or an evaluation."""

    config_file: Path
    """Its resolved configuration."""
    values: Mapping[str, Any]
    """The content of that file."""
    within: tuple[Path, ...] = ()
    """The folders, without links, that its report must be in; none: wherever the configuration says."""

    @property
    def is_evaluation(self) -> bool:
        """Whether it is an evaluation rather than a training."""
        return "pred_file_path" in self.values

    @property
    def stage(self) -> str:
        """The stage's name."""
        if self.is_evaluation:
            return "evaluation"
        kind = learning_section(self.values.get("model"))
        return next(name for name, section in STAGES.items() if section is kind)

    @property
    def folder(self) -> Path:
        """The job folder."""
        return self.config_file.parent

    @property
    def name(self) -> str:
        """The job's name."""
        return str(value_of(self.values, "run.name") or self.config_file.name.removesuffix(CONFIG_SUFFIX))

    def path(self, key: str) -> Path | None:
        """Return the path at a key; inside the job folder, also if that has moved since.

        None if the key does not name a file.
        """
        value, original = value_of(self.values, key), value_of(self.values, "run.results_dir")
        if not isinstance(value, str) or not value or "\0" in value:
            return None
        path = Path(value)
        if not path.name:
            return None
        if isinstance(original, str) and original and path.is_relative_to(original):
            return self.folder / path.relative_to(original)
        return path

    @property
    def results(self) -> Path | None:
        """The folder of the results."""
        predictions = self.path("pred_file_path")
        return predictions.parent if predictions is not None else self.path("exp_manager.explicit_log_dir")

    @property
    def report_file(self) -> Path | None:
        """The file of its report: the configuration's, in the results, or else in the job folder; None without one."""
        if not self.within:
            return self.configured_report
        beside = self.config_file.with_name(f"{self.config_file.name.removesuffix(CONFIG_SUFFIX)}_{REPORT_NAME}")
        results = None if self.results is None else self.results / REPORT_NAME
        places = [place for place in (self.configured_report, results, beside) if place is not None]
        return next((place for place in places if self._may_have(place)), None)

    @property
    def configured_report(self) -> Path | None:
        """The file where the job itself writes its report."""
        chosen = self.path("report_path") if self.is_evaluation else None
        if chosen is not None and chosen.suffix == ".html":
            return chosen
        return None if self.results is None else self.results / REPORT_NAME

    def _may_have(self, place: Path) -> bool:
        try:
            resolved = place.resolve()
        except (OSError, RuntimeError):  # links that form a circle
            return False
        return any(resolved.is_relative_to(folder) for folder in self.within)

    @cached_property
    def training(self) -> TrainingFiles | None:
        """The files of the training, for an evaluation those of the one it names; None if there is none."""
        summary = self.path("training_summary_path")
        if self.is_evaluation:
            return None if summary is None else TrainingFiles(summary.parent)
        return None if self.results is None else TrainingFiles(self.results)

    @cached_property
    def provenance(self) -> Mapping[str, object]:
        """What the job itself ran with."""
        return {} if self.results is None else read_object(self.results / PROVENANCE_NAME)

    @cached_property
    def figures(self) -> Mapping[str, Any]:
        """The figures of an evaluation, as in <predictions>_metrics.json; {} without any."""
        predictions = self.path("pred_file_path")
        if predictions is None:
            return {}
        found = read_object(predictions.with_name(figures_name(predictions.name)))
        return found if found else _older_figures(predictions)

    @cached_property
    def scores(self) -> list[Mapping[str, Any]]:
        """The lines of <predictions>_scores.jsonl; [] without one."""
        predictions = self.path("pred_file_path")
        return [] if predictions is None else read_lines(predictions.with_name(scores_name(predictions.name)))

    @cached_property
    def records(self) -> dict[str, Mapping[str, Any]]:
        """The lines of predictions.jsonl, by the record that they are about."""
        predictions = self.path("pred_file_path")
        found = [] if predictions is None else read_lines(predictions.with_name(RECORDS_NAME))
        return {str(line.get("record")): line for line in found}

    def data_files(self) -> list[Path]:
        """Return the files that hold data which a report may quote."""
        predictions = self.path("pred_file_path")
        keys = ("data_paths", "model.data.train_ds", "model.data.validation_ds")
        lists = [value_of(self.values, key) for key in keys]
        named: list[object] = [path for paths in lists if isinstance(paths, list) for path in paths]
        named.append(value_of(self.values, "ground_truth_file_path"))
        files = [Path(path) for path in named if isinstance(path, str) and path and "\0" not in path]
        if predictions is not None:
            names = (predictions.name, RECORDS_NAME, scores_name(predictions.name))
            files += [predictions.with_name(name) for name in names]
        return files


def find_runs(folders: Sequence[Path], tell: Callable[[str], object] = lambda line: None) -> list[Run]:
    """Return the trainings and evaluations at or below the folders, in the order of their paths, each once.

    Their reports belong into these folders, whatever their configurations say: these may be a stranger's. tell: gets a
    line for each folder and configuration that cannot be read, and for runs beyond MAX_RUNS.
    """
    files = dict.fromkeys(path.resolve() for folder in folders for path in _config_files(folder, 0, tell))
    within = tuple(folder.resolve() for folder in folders)
    runs = [run for path in sorted(files) if (run := _read_run(path, within, tell)) is not None]
    if len(runs) > MAX_RUNS:
        tell(f"{len(runs):,} runs: all beyond the first {MAX_RUNS:,} are left out")
    return runs[:MAX_RUNS]


def _read_run(config_file: Path, within: tuple[Path, ...], tell: Callable[[str], object]) -> Run | None:
    """Return the run of a `<job>_hydra.yaml`; None if that is unreadable or is another stage's."""
    try:
        values = load_yaml(config_file)
    except (OSError, UserError) as error:
        tell(_left_out(config_file, error))
        return None
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        return None
    is_run = "pred_file_path" in values or ("exp_manager" in values and isinstance(values.get("model"), dict))
    return Run(config_file, values, within) if is_run else None


def _left_out(path: Path, error: OSError | UserError) -> str:
    why = (environment_message(error) or str(error)) if isinstance(error, OSError) else first_line(error)
    return f"{path} is left out: {why.removesuffix(f': {path}')}"


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; {} if there is no readable one."""
    try:
        values = load_json(path)
    except (OSError, UserError):
        return {}
    return values if isinstance(values, dict) else {}


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """Return the objects in a JSON Lines file, without lines that are unreadable."""
    try:
        lines = read_bytes(path, 2**30).split(b"\n")
    except (OSError, UserError):
        return []
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, str(path), line=number)
        except UserError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def _config_files(folder: Path, depth: int, tell: Callable[[str], object]) -> Iterator[Path]:
    """Yield the configurations at or below a folder; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        tell(_left_out(folder, error))
        return
    for entry in entries:
        if entry.name.endswith(CONFIG_SUFFIX) and os.path.isfile(entry.path):
            yield Path(entry.path)
        elif depth < _MAX_DEPTH and entry.is_dir(follow_symlinks=False):
            yield from _config_files(Path(entry.path), depth + 1, tell)


def _older_figures(predictions: Path) -> Mapping[str, Any]:
    """Return SQuAD's figures of an evaluation that wrote no others; they have no intervals."""
    found: dict[str, Any] = {}
    for name, prefix in (("base", OF_BASE), ("adapter", "")):
        values = read_object(predictions.with_name(prefix + METRIC_NAME))
        shares = {key: values[key] for key in ("exact_match", "f1") if isinstance(values.get(key), int | float)}
        if shares:
            found[name] = {key: {"value": value / 100} for key, value in shares.items()}
            found["questions"] = values.get("total")
    if found:
        titles = {"exact_match": "exact match", "f1": "F1"}
        found["metrics"] = {key: {"title": title, "is_share": True} for key, title in titles.items()}
    return found
