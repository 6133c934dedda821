# SPDX-License-Identifier: Apache-2.0
"""All kinds of mutated input, and those of text files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine import write_squad
from tests.jobs import job_config, write_config
from tests.reliability.model_kinds import GgufFile, HuggingFace, Images, Nemo
from tests.reliability.mutants import Format, Json, JsonLines, Yaml
from tests.reliability.mutation_kind import Kind, digest
from tests.reliability.own_kinds import Cache, Checkpoint, Record
from tests.reliability.small_jobs import write_squad_source


class Config(Kind):
    """A job's `_hydra.yaml`, read by its script."""

    name = "config"

    def make(self, folder: Path) -> None:
        write_config(folder / "job_hydra.yaml", job_config(Path("/base.nemo"), Path("/data"), Path("/results")))

    def formats(self) -> Mapping[str, Format]:
        return {"job_hydra.yaml": Yaml(self.values, self.canary)}

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.adapters.sections import AdapterLearning
        from nemo_launcher.config.load import load
        from nemo_launcher.script import load_config

        job = load(load_config([str(folder / "job_hydra.yaml")]), AdapterLearning)
        return json.loads(json.dumps(job.values, sort_keys=True))


class Jsonl(Kind):
    """A data file, checked by the launcher and encoded by a job."""

    name = "jsonl"

    def make(self, folder: Path) -> None:
        shutil.copy(write_squad(folder.with_suffix(".squad"), train=6) / "squad_train.jsonl", folder / "train.jsonl")

    def formats(self) -> Mapping[str, Format]:
        return {"train.jsonl": JsonLines(self.values, extra=True)}

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.data.prompts import encode_files
        from nemo_launcher.data.record_checks import check_fields
        from nemo_launcher.errors import UserError
        from tests.caches import SQUAD, gpt_encoder

        path = str(folder / "train.jsonl")
        problems = check_fields(path, ["context", "question", "answer"], "answer", limit=20)
        if problems:
            raise UserError(problems)
        samples = encode_files([path], [SQUAD], gpt_encoder(), max_dropped_share=0.9, report=lambda text: None)
        return [digest(json.dumps([sample.input_ids, sample.answer_start]).encode()) for sample in samples]


class Squad(Kind):
    """The two files of SQuAD, prepared."""

    name = "squad"

    def make(self, folder: Path) -> None:
        for seed, name in enumerate(("train-v1.1.json", "dev-v1.1.json")):
            write_squad_source(folder / name, seed)

    def formats(self) -> Mapping[str, Format]:
        return dict.fromkeys(("train-v1.1.json", "dev-v1.1.json"), Json(self.values, extra=True))

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.data.squad import SquadBuilder

        SquadBuilder().prepare(folder, out / "data", download=False)
        return {name: digest((out / "data" / name).read_bytes()) for name in SquadBuilder.dataset.files}


KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Config, Jsonl, Squad, Nemo, HuggingFace, Images, GgufFile, Checkpoint, Record, Cache)
}
