# SPDX-License-Identifier: Apache-2.0
"""The four jobs that the drivers disturb, on tiny models: how to run them, and their expected outputs, bit for bit."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine import squad_records, tiny_gpt_nemo, write_squad
from tests.jobs import SCRIPTS, evaluation_config, job_config, write_config
from tests.reliability.harness import Ended, in_child

PLACE = "case-000000"
"""The name of a case's folder; all have the same length and parent, so that paths do not change output sizes."""
_OF_THE_RUN = re.compile(r"second|memory|time|date|threads|version")
"""Keys of a summary that describe the run instead of its result."""

_IGNORED = re.compile(r"\.log$|_log\.txt$|_logs\.txt$|events\.out|/git-info|^tmp/[a-z0-9_]{8}$")
"""Logs, and the empty file with which Python tests TMPDIR."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Created once and only read: a base, the Hugging Face folder that it was converted from, and an adapter."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base.nemo"

    @property
    def hugging_face(self) -> Path:
        return self.folder / "base_hf"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter.nemo"

    def make(self) -> None:
        """Create all inputs here, so that the process that forks computes nothing."""
        import torch

        from nemo_launcher.adapters.archive import save_adapter
        from tests.engine import adapted

        tiny_gpt_nemo(self.base)
        model = job_config(self.base, self.folder, self.folder)["model"]
        torch.manual_seed(0)
        save_adapter(self.adapter, model, adapted(self.base, model)[1].state_dict())


@dataclass(frozen=True, slots=True)
class SmallJob:
    """One stage's script with a small configuration.

    prepare: writes a case's own inputs into its folder and returns the configuration; outputs: what has to be there in
    the end, relative to the folder.
    """

    name: str
    script: str
    prepare: Callable[[Inputs, Path], dict[str, Any]]
    outputs: tuple[str, ...]

    def config_file(self, inputs: Inputs, folder: Path) -> Path:
        """Prepare the folder of a case; return its `<job>_hydra.yaml`, which is beside the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        return write_config(folder.with_suffix(".d") / f"{self.name}_hydra.yaml", self.prepare(inputs, folder))

    def run(self, folder: Path) -> None:
        """Run the script in this process like the job; TMPDIR is in the folder, so that it is compared too."""
        os.environ["TMPDIR"] = str(folder / "tmp")
        tempfile.tempdir = None
        os.environ["OMP_NUM_THREADS"] = "1"
        sys.argv = [str(SCRIPTS / self.script), str(folder.with_suffix(".d") / f"{self.name}_hydra.yaml")]
        runpy.run_path(sys.argv[0], run_name="__main__")

    def result(self, folder: Path) -> dict[str, bytes]:
        """Return the outputs of a finished job, without the folder's name and values that describe the run."""
        return {name: _comparable(folder / name, folder) for name in self.outputs if (folder / name).exists()}

    def differences(self, folder: Path, wanted: Undisturbed) -> list[str]:
        """Return the differences between a finished job's folder and that of the undisturbed job."""
        found = self.result(folder)
        absent = [f"{name} is absent" for name in self.outputs if name not in found]
        other = [f"{name} is not that of the undisturbed job" for name in found if found[name] != wanted.result[name]]
        left = [f"{name} was left behind" for name in sorted(files_of(folder) - wanted.files)]
        return absent + other + left

    def half_written(self, folder: Path, wanted: Undisturbed) -> list[str]:
        """Return the outputs that exist under their names but are incomplete, after a death at any moment."""
        if self.name == "training":
            return _unreadable(folder)
        return [
            f"{name} is half written" for name, content in self.result(folder).items() if content != wanted.result[name]
        ]


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The end of an undisturbed job, its outputs, and the names of all files in its folder."""

    ended: Ended
    result: dict[str, bytes]
    files: frozenset[str]


def undisturbed(job: SmallJob, inputs: Inputs, folder: Path) -> Undisturbed:
    """Run a job to its end. Raises RuntimeError if it fails or leaves temporary files."""
    job.config_file(inputs, folder)
    ended = in_child(lambda: job.run(folder), folder.with_suffix(".d") / "log")
    found = Undisturbed(ended, job.result(folder), files_of(folder))
    temporary = sorted(name for name in found.files if name.startswith("tmp/") or name.endswith(".tmp"))
    absent = sorted(set(job.outputs) - set(found.result))
    if ended.status or absent or temporary:
        raise RuntimeError(
            f"{job.name}, undisturbed: status {ended.status}, absent {absent}, left {temporary}\n{ended.output}"
        )
    return found


def files_of(folder: Path) -> frozenset[str]:
    """Return the names of a folder's files, except logs."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return frozenset(name for name in files if not _IGNORED.search(name))


def _comparable(path: Path, folder: Path) -> bytes:
    assert len(folder.name) == len(PLACE)
    content = path.read_bytes().replace(str(folder).encode(), str(folder.with_name(PLACE)).encode())
    if path.suffix == ".json":
        values = json.loads(content)
        return json.dumps({key: value for key, value in values.items() if not _OF_THE_RUN.search(key)}).encode()
    if path.suffix == ".safetensors":  # safetensors writes metadata in random order
        size = int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True).encode() + content[8 + size :]
    return content


def _unreadable(folder: Path) -> list[str]:
    """Return the unreadable outputs of a training, which writes them several times, each time completely."""
    from safetensors.numpy import load_file

    from nemo_launcher.adapters.archive import read_adapter

    problems = []
    readers: dict[str, Callable[[Path], Any]] = {
        ".nemo": read_adapter,
        ".safetensors": load_file,
        ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    }
    for path in (folder / "results").glob("*"):
        if path.suffix in readers and not path.name.startswith("."):
            try:
                readers[path.suffix](path)
            except Exception as error:
                problems.append(f"{path.name} is half written: {error}")
    return problems


# --- the jobs ---------------------------------------------------------------------------------------------------


def _training(inputs: Inputs, folder: Path) -> dict[str, Any]:
    data = write_squad(folder / "data", train=8, validation=4)
    changes = {"trainer.max_epochs": 2, "trainer.val_check_interval": 1, "run.model_family": "llama"}
    return job_config(inputs.base, data, folder, changes)


def _conversion(inputs: Inputs, folder: Path) -> dict[str, Any]:
    return {
        "run": {"name": "convert", "results_dir": str(folder), "model_train_name": "llama"},
        "model": {
            "hf_model_path": str(inputs.hugging_face),
            "nemo_path": str(folder / "converted.nemo"),
            "precision": None,
        },
    }


def _evaluation(inputs: Inputs, folder: Path) -> dict[str, Any]:
    data = write_squad(folder / "data", train=4, validation=4)
    changes = {"compare_with_base": True, "summary_path": str(folder / "results/summary.json")}
    return evaluation_config(inputs.base, inputs.adapter, data, folder, **changes)


def _preparation(inputs: Inputs, folder: Path) -> dict[str, Any]:
    for name, seed in (("train-v1.1.json", 2), ("dev-v1.1.json", 3)):
        write_squad_source(folder / "source" / name, seed)
    return {
        "run": {"name": "prepare", "results_dir": str(folder)},
        "source_dir": str(folder / "source"),
        "output_dir": str(folder / "data"),
        "download": False,
    }


def write_squad_source(path: Path, seed: int, count: int = 8) -> Path:
    """Write toy questions in the SQuAD format; return `path`."""
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    for number, record in enumerate(squad_records(count, seed)):
        answer = {"text": record["answer"], "answer_start": record["context"].index(record["answer"])}
        question = {"id": f"q{number}", "question": record["question"], "answers": [answer]}
        paragraphs.setdefault(record["context"], []).append(question)
    data = [{"title": "toy", "paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs.items()]}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


JOBS = {
    job.name: job
    for job in (
        SmallJob(
            "training",
            "train.py",
            _training,
            ("results/adapter.nemo", "results/adapter.safetensors", "results/training_summary.json"),
        ),
        SmallJob("conversion", "convert_hf2nemo.py", _conversion, ("converted.nemo",)),
        SmallJob(
            "evaluation",
            "evaluate.py",
            _evaluation,
            (
                *(
                    f"results/{base}{name}"
                    for base in ("", "base_")
                    for name in ("predictions.txt", "predictions.jsonl")
                ),
                *("results/squad_metric.json", "results/base_squad_metric.json", "results/summary.json"),
            ),
        ),
        SmallJob(
            "preparation",
            "prepare_data.py",
            _preparation,
            (
                *("data/squad_train.jsonl", "data/squad_val.jsonl", "data/squad_test.jsonl"),
                *("data/squad_test_ground_truth.jsonl", "data/squad_manifest.json"),
            ),
        ),
    )
}
