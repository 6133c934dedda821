# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported adapter: what it was made from, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from nemo_launcher import __version__
from nemo_launcher.adapters.forms.methods import OpenedAdapter
from nemo_launcher.config.constraints import shown
from nemo_launcher.files.foreign import load_json
from nemo_launcher.files.values import below, entries, text
from nemo_launcher.runtime.provenance import PROVENANCE_NAME

_USE = {
    "hf": """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
    "peft": """from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained("THE_BASE_MODEL"), "THIS_FOLDER")""",
}
"""How to load each form."""


def write_card(folder: Path, opened: OpenedAdapter, form: str, notes: str) -> None:
    """Write README.md into a folder. form: a key of _USE; notes: a sentence about the weights."""
    library = "transformers" if form == "hf" else form
    data = ModelCardData(library_name=library, tags=[opened.adapters.method.name, "nemo-adapter-launcher"])
    encoder = opened.target.form.layout.task == "SEQ_2_SEQ_LM"
    use = _USE[form].format(auto="AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM")
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {opened.adapters.method.name} adapter of {_base_name(opened)}",
        notes,
        f"```python\n{use}\n```",
        "## Prompts",
        *(_templates(opened.config) or ["The adapter names no template."]),
        "## Made from",
        _table(_facts(opened)),
        "The licence of the base model applies to its weights.",
    ]
    ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=True).save(folder / "README.md")


def _base_name(opened: OpenedAdapter) -> str:
    """Return the name of the base's source, or of its file; never a path."""
    base = opened.target.model.base
    return text(below(base.config, "converted_from"), "file") or base.files.path.name


def _facts(opened: OpenedAdapter) -> Iterator[tuple[str, str]]:
    base, adapters = opened.target.model.base, opened.adapters
    yield "base model", _base_name(opened)
    yield "architecture", opened.target.form.layout.architecture
    yield "fingerprint of the base", base.fingerprint
    yield "checksum of the base", base.checksum
    yield "method", adapters.method.name
    block = below(opened.config, adapters.method.block)
    for key, value in block.items():
        if value is not None and key != "type":
            yield key, shown(value)
    optimizer = below(opened.config, "optim")
    for name in ("name", "lr"):
        if optimizer.get(name) is not None:
            yield f"optim.{name}", str(optimizer[name])
    yield from _data(opened)
    yield "written by", f"nemo-adapter-launcher {__version__}"


def _data(opened: OpenedAdapter) -> Iterator[tuple[str, str]]:
    """Yield the training's data files with their hashes, if its record is beside the adapter."""
    path = Path(opened.path).with_name(PROVENANCE_NAME)
    record = load_json(path) if path.is_file() else None
    if not isinstance(record, dict):
        return
    if below(record, "base").get("checksum") != opened.target.model.base.checksum:
        return  # of another training
    for key in below(record, "data"):
        for file in entries(below(record, "data"), key):
            yield key, f"{file.get('source') or Path(str(file.get('path'))).name}, sha256 {file.get('sha256')}"


def _templates(config: Mapping[str, object]) -> list[str]:
    """Return each task's template; it is what prompts looked like in training."""
    parts = []
    for entry in entries(config, "task_templates"):
        template, answer = entry.get("prompt_template"), entry.get("answer_field")
        quoted = json.dumps(template, ensure_ascii=False)
        parts.append(f"- `{entry.get('taskname')}`: `{quoted}`, which the model continues with `{answer}`")
    return ["\n".join(parts)] if parts else []


def _table(rows: Iterator[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])
