# SPDX-License-Identifier: Apache-2.0
"""Mutated models: `.nemo` archives and what conversions read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reliability.containers import Safetensors, Tar, TorchZip
from tests.reliability.gguf_format import GgufFormat, write_llama
from tests.reliability.mutants import Format, Json, Yaml
from tests.reliability.mutation_kind import PROBE, Kind, digest_of_tensors


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
