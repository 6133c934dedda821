# SPDX-License-Identifier: Apache-2.0
"""Mutated files of the project itself: checkpoints, caches and records of jobs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine import write_squad
from tests.reliability.mutants import Format, Json
from tests.reliability.mutation_kind import Kind, digest
from tests.reliability.own_formats import CacheFormat, CheckpointFormat
from tests.reliability.small_jobs import JOBS


class Checkpoint(Kind):
    """The newest checkpoint of a stopped training, which is sometimes restarted."""

    name = "checkpoint"
    once = 60

    def make(self, folder: Path) -> None:
        job = JOBS["training"]
        place = folder / "case-000000"
        job.config_file(self.inputs, place)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(SystemExit):
                job.run(place)
            os._exit(0)
        os.waitpid(pid, 0)
        newest = max((place / "results/checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        (folder / "newest.ckpt").write_bytes(newest.read_bytes())
        shutil.rmtree(place)
        shutil.rmtree(place.with_suffix(".d"))

    def formats(self) -> Mapping[str, Format]:
        return {"newest.ckpt": CheckpointFormat(self.values)}

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.errors import Problem, UserError
        from nemo_launcher.training.checkpoint_file import (
            DamagedCheckpointError,
            ForeignCheckpointError,
            read_checkpoint,
        )

        path = folder / "newest.ckpt"
        try:
            return digest(repr(read_checkpoint(path)).encode())
        except (DamagedCheckpointError, ForeignCheckpointError) as error:
            raise UserError(Problem(str(path), str(error))) from None

    def must_agree(self, way: str) -> bool:
        return way != "structural"  # these have their own checksum


class Cache(Kind):
    """A data cache: whatever is wrong with it, the samples equal those of the data."""

    name = "cache"

    def make(self, folder: Path) -> None:
        shutil.copy(write_squad(folder.with_suffix(".squad"), train=6) / "squad_train.jsonl", folder / "train.jsonl")
        self._load(folder)
        (made,) = (folder / "cache").glob("*.samples")
        made.rename(folder / "cache/made.samples")
        (folder / "name").write_text(made.name)

    def formats(self) -> Mapping[str, Format]:
        return {"cache/made.samples": CacheFormat(self.values)}

    def use(self, folder: Path, out: Path) -> Any:
        shutil.copytree(folder / "cache", out / "cache")
        (out / "cache/made.samples").rename(out / "cache" / (folder / "name").read_text())
        return self._load(folder, out / "cache")

    def must_agree(self, way: str) -> bool:
        return way != "structural"

    @staticmethod
    def _load(folder: Path, cache: Path | None = None) -> Any:
        from tests.caches import gpt_encoder, load

        samples = load([folder / "train.jsonl"], gpt_encoder(), cache or folder / "cache", report=lambda text: None)
        return [digest(json.dumps([list(sample.input_ids), sample.answer_start]).encode()) for sample in samples]


class Record(Kind):
    """The files of one of three jobs, read by `status`, `logs` and `cancel`; rows of the others must not change."""

    name = "record"
    wants_processes = True  # Slurm's commands

    def make(self, folder: Path) -> None:
        from nemo_launcher.clusters.record import JobRecord, write

        for name in ("first", "second", "third"):
            place = folder / "results" / name
            (place / "results").mkdir(parents=True)
            (place / f"{name}_exit_status").write_text("0\n")
            (place / f"{name}_submission.sh").write_text("#!/bin/bash\nexit 0\n")
            (place / f"log-{name}_7.out").write_text("trained\n")
            progress = {"step": 4, "max_steps": 4, "val_loss": 0.5, "seconds_left": 0.0, "updated": 1.0}
            (place / "results/progress.json").write_text(json.dumps(progress))
            write(
                JobRecord(
                    stage="adapter_learning",
                    name=name,
                    folder=place,
                    outputs=[place / f"{name}_submission.sh"],
                    cluster_type="interactive",
                    progress_file=place / "results/progress.json",
                    job_id="7",
                    logs=[place / f"log-{name}_7.out"],
                    submitted=1.0,
                    host="elsewhere",
                    process=(1, "1"),
                )
            )

    def formats(self) -> Mapping[str, Format]:
        # the process ids: this process's parent, init, all processes
        values = [
            *self.values,
            [os.getppid(), "1"],
            [1, "1"],
            [-1, "1"],
            [0, ""],
            "bcm",
            "bcp",
            ["1; x"],
            os.uname().nodename,
        ]
        files: dict[str, Format] = {"results/second/second_job.json": Json(values)}
        files["results/second/results/progress.json"] = Json(values)
        return files | {"results/second/second_exit_status": Json(values)}

    def choose(self, draw: random.Random) -> str:
        return draw.choice(["results/second/second_job.json"] * 3 + sorted(self.formats()))

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.cli import main

        shutil.copytree(folder / "results", out / "results")
        (out / "bin").mkdir()
        os.environ["PATH"] = f"{out / 'bin'}:/usr/bin:/bin"
        where = ["--results-dir", str(out / "results")]
        with (out / "status.json").open("w+") as stream, contextlib.redirect_stdout(stream):
            status = main(["status", "--json", where[-1]])
        if status:
            raise AssertionError(f"status --json: exit status {status}")
        jobs = json.loads((out / "status.json").read_text(), parse_constant=_refuse)["jobs"]
        rows = [{k: v for k, v in row.items() if k != "folder"} for row in jobs if row["name"] in ("first", "third")]
        second = str(out / "results/second")
        for verb in (["status", where[-1]], ["logs", second, *where], ["cancel", second, *where]):
            status = main(verb)
            if status not in (0, 1, 2):
                raise AssertionError(f"{verb[0]}: exit status {status}")
        shutil.rmtree(out / "results")
        return [row for row in rows if row]

    def must_agree(self, way: str) -> bool:
        return True


def _refuse(constant: str) -> Any:
    raise AssertionError(f"status --json prints {constant}, which is not JSON")
