# SPDX-License-Identifier: Apache-2.0
"""The kinds of mutated input: the valid input, its formats, and how the project uses it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine import write_squad
from tests.jobs import job_config, write_config
from tests.reliability.containers import Safetensors, Tar, TorchZip
from tests.reliability.gguf_format import GgufFormat, write_llama
from tests.reliability.mutants import Format, Json, JsonLines, Yaml, hostile_values
from tests.reliability.own_formats import CacheFormat, CheckpointFormat
from tests.reliability.small_jobs import JOBS, Inputs, write_squad_source

PROBE = "question: Where does Anna live? 2023 \u00e9\u4e16 answer:"


class Kind(ABC):
    """One kind of input. inputs: created once and only read; canary: a file that no mutant may create."""

    name: str
    once: int = 200
    """The number of mutants that one forked child processes in sequence."""
    wants_processes = False
    """Whether its use starts programs, so that programs do not indicate executed code."""

    def __init__(self, inputs: Inputs, canary: Path) -> None:
        self.inputs, self.values, self.canary = inputs, hostile_values(canary), canary

    @abstractmethod
    def make(self, folder: Path) -> None:
        """Write the valid input into an empty folder."""

    @abstractmethod
    def formats(self) -> Mapping[str, Format]:
        """Return its files to mutate, and their formats."""

    @abstractmethod
    def use(self, folder: Path, out: Path) -> Any:
        """Use the input like a job or verb; return the result as JSON values."""

    def choose(self, draw: random.Random) -> str:
        """Return the file to mutate."""
        return draw.choice(sorted(self.formats()))

    def must_agree(self, way: str) -> bool:
        """Return whether mutants made in this way must give the result of the valid input if they are accepted."""
        return way == "harmless"


def digest(*contents: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def digest_of_tensors(tensors: Mapping[str, Any]) -> str:
    """Return a hash of tensors and their names."""
    parts = [
        f"{name} {t.dtype} {tuple(t.shape)}".encode() + t.contiguous().numpy().tobytes() for name, t in tensors.items()
    ]
    return digest(*sorted(parts))


# --- text files -------------------------------------------------------------------------------------------------


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


# --- models -----------------------------------------------------------------------------------------------------


class Nemo(Kind):
    """A base or adapter `.nemo`: inspected with `inspect`, then loaded."""

    name = "nemo"

    def make(self, folder: Path) -> None:
        shutil.copy(self.inputs.base, folder / "base.nemo")
        shutil.copy(self.inputs.adapter, folder / "adapter.nemo")

    def formats(self) -> Mapping[str, Format]:
        members: dict[str, Format] = {".yaml": Yaml(self.values, self.canary), ".ckpt": TorchZip(self.canary)}
        return dict.fromkeys(("base.nemo", "adapter.nemo"), Tar(members | {".json": Json(self.values)}, self.canary))

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.adapters.archive import check_base, load_adapter, read_adapter
        from nemo_launcher.families.base import load_base
        from nemo_launcher.inspection import inspect, readable

        kinds = {}
        for name in ("base.nemo", "adapter.nemo"):
            facts = inspect(str(folder / name))
            readable(facts)
            json.dumps(facts, allow_nan=False)
            kinds[name] = facts.get("kind")
        base = load_base(folder / "base.nemo")
        path = folder / "adapter.nemo"
        config, state = read_adapter(path)
        check_base(config, state, base, str(path))
        load_adapter(path, base)
        weights = {f"{key}.{name}": tensor for key, tensors in state.items() for name, tensor in tensors.items()}
        return [kinds, base.fingerprint, base.tokenizer.text_to_ids(PROBE), digest_of_tensors(weights)]


class Conversion(Kind):
    """Common code of the conversion sources."""

    once = 40
    source: str
    language_model = False

    def use(self, folder: Path, out: Path) -> Any:
        from nemo_launcher.conversion.convert import convert
        from nemo_launcher.families.base import load_base

        target = out / "base.nemo"
        convert(folder / self.source, target, language_model=self.language_model)
        base = load_base(target)
        return [base.fingerprint, base.tokenizer.text_to_ids(PROBE)]


class HuggingFace(Conversion):
    """A Hugging Face folder, converted."""

    name = "hf"
    source = "model"

    def make(self, folder: Path) -> None:
        shutil.copytree(self.inputs.hugging_face, folder / "model")

    def formats(self) -> Mapping[str, Format]:
        values = [
            *self.values,
            "auto",
            "LlamaForCausalLM",
            {"AutoTokenizer": ["x.Y", None]},
            {"AutoModelForCausalLM": "x.Y"},
        ]
        files: dict[str, Format] = {
            f"model/{name}": Json(values, extra=name == "config.json")
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        }
        return files | {"model/model.safetensors": Safetensors(self.values)}

    def choose(self, draw: random.Random) -> str:
        return draw.choice(
            sorted(set(self.formats()) - {"model/generation_config.json"} if draw.random() < 0.97 else self.formats())
        )


class Images(HuggingFace):
    """A folder of a multi-modal model, whose language model is converted."""

    name = "images"
    language_model = True

    def make(self, folder: Path) -> None:
        from tests.conformance.families.models import FAMILIES, save

        save(folder / "model", FAMILIES["images-gemma3-plain"])


class GgufFile(Conversion):
    """A GGUF file, converted."""

    name = "gguf"
    source = "model.gguf"

    def make(self, folder: Path) -> None:
        tokenizer = json.loads((self.inputs.hugging_face / "tokenizer.json").read_text(encoding="utf-8"))
        write_llama(folder / "model.gguf", tokenizer)

    def formats(self) -> Mapping[str, Format]:
        return {"model.gguf": GgufFormat()}


# --- the project's own files ------------------------------------------------------------------------------------


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


KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Config, Jsonl, Squad, Nemo, HuggingFace, Images, GgufFile, Checkpoint, Record, Cache)
}
