# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported adapter: what it was made from, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nemo_launcher import __version__
from nemo_launcher.adapters.forms.methods import OpenedAdapter
from nemo_launcher.adapters.forms.scores import Scores, named_files, training_record
from nemo_launcher.checkpoint.hub_model import model_named
from nemo_launcher.config.constraints import shown
from nemo_launcher.files.values import below, entries, text
from nemo_launcher.runtime.figures_file import Figure, Measured

_UNKNOWN = "unknown"
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
"""A licence's identifier on the hub."""
_USE = {
    "hf": """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")""",
    "peft": """from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained("THE_BASE_MODEL"), "THIS_FOLDER")""",
}
"""How to load each form."""


def write_card(folder: Path, opened: OpenedAdapter, form: str, notes: str, scores: Scores | None = None) -> None:
    """Write README.md into a folder; what is not known is said to be unknown.

    form: a key of _USE; notes: a sentence about the weights; scores: of an evaluation of this adapter.
    """
    encoder = opened.target.form.layout.task == "SEQ_2_SEQ_LM"
    auto = "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM"
    if form == "peft" and opened.target.whole is not None:
        auto = "AutoModelForImageTextToText"
    use = _USE[form].format(auto=auto)
    title = f"{opened.adapters.method.name} adapter of {_base_name(opened)}"
    parts = [
        f"---\n{_metadata(opened, form, title, scores).to_yaml()}\n---",
        f"# {title}",
        notes,
        f"```python\n{use}\n```",
        "## Prompts",
        *(_templates(opened.config) or ["The adapter names no template."]),
        "## Scores",
        *(["Unknown: no evaluation was named."] if scores is None else _score_parts(scores)),
        "## Made from",
        _table(("", ""), _facts(opened)),
        "## Licence",
        _licence_text(opened),
    ]
    ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=True).save(folder / "README.md")


def _metadata(opened: OpenedAdapter, form: str, title: str, scores: Scores | None) -> ModelCardData:
    """Return the card's metadata; a licence only for a folder that holds the weights of the base."""
    licence = _licence(opened) if form == "hf" else {}
    known = _IDENTIFIER.fullmatch(licence.get("id", "")) is not None
    task = "text2text-generation" if opened.target.form.layout.task == "SEQ_2_SEQ_LM" else "text-generation"
    return ModelCardData(
        library_name="transformers" if form == "hf" else form,
        base_model=_hub_name(opened),
        license=licence["id"] if known else None,
        license_name=licence.get("name") if known else None,
        license_link=licence.get("link") if known else None,
        tags=[opened.adapters.method.name, "nemo-adapter-launcher"],
        model_name=None if scores is None else title,
        eval_results=None if scores is None else [*_results(scores, task)],
    )


def _hub_name(opened: OpenedAdapter) -> str | None:
    """Return the base's name on the Hugging Face Hub; None if it was converted from a model on this machine."""
    named = text(below(opened.target.model.base.config, "converted_from"), "hub")
    model = model_named(named, "converted_from.hub") if named else None
    return None if model is None else model.name


def _results(scores: Scores, task: str) -> Iterator[EvalResult]:
    """Yield the scores as the hub reads them; intervals are in the card's text, because it has no place for them."""
    files = ", ".join(name for name, _ in scores.data) or _UNKNOWN
    for one in scores.figures:
        yield EvalResult(
            task_type=task,
            dataset_type=files,
            dataset_name=one.task or files,
            dataset_args={"sha256": [sha256 for _, sha256 in scores.data]},
            metric_type=one.metric,
            metric_name=one.title,
            metric_value=one.adapter.value,
        )


def _score_parts(scores: Scores) -> list[str]:
    """Return the scores with their intervals, and the data that they were measured on."""
    confidence = scores.figures[0].confidence
    head = (
        "",
        "questions",
        "with the adapter",
        f"{confidence:.0%} interval",
        "frozen base",
        f"{confidence:.0%} interval",
    )
    rows = [
        (
            one.title if one.task is None else f"{one.title}, {one.task}",
            _UNKNOWN if one.questions is None else f"{one.questions:,}",
            *_shown(one, one.adapter),
            *(("not measured", "") if one.base is None else _shown(one, one.base)),
        )
        for one in scores.figures
    ]
    files = [f"- {name}, sha256 {sha256}" for name, sha256 in scores.data]
    return [_table(head, rows), "Measured on:", "\n".join(files) or _UNKNOWN]


def _shown(one: Measured, figure: Figure) -> tuple[str, str]:
    """Return a figure's value and interval as text."""
    value, low, high = (
        _UNKNOWN if number is None else f"{number:.1%}" if one.is_share else f"{number:.4g}"
        for number in (figure.value, figure.low, figure.high)
    )
    return value, _UNKNOWN if _UNKNOWN in (low, high) else f"{low} to {high}"


def _licence(opened: OpenedAdapter) -> dict[str, str]:
    """Return the licence that the base's source named (conversion.licence); {} if that is not known."""
    stored = below(below(opened.target.model.base.config, "converted_from"), "licence")
    return {key: value for key, value in stored.items() if isinstance(value, str)}


def _licence_text(opened: OpenedAdapter) -> str:
    licence = _licence(opened)
    named = [licence[key] for key in ("id", "name") if key in licence]
    if not named:
        return f"The licence of the base model is {_UNKNOWN}: its source named none, or it was not recorded."
    link = f" ({licence['link']})" if "link" in licence else ""
    source = licence.get("source", _UNKNOWN)
    return (
        f"The base model's licence is {': '.join(named)}{link}, according to its {source}. It applies to its weights."
    )


def _base_name(opened: OpenedAdapter) -> str:
    """Return the name of the base's source, or of its file; never a path."""
    base = opened.target.model.base
    return text(below(base.config, "converted_from"), "file") or base.files.path.name


def _facts(opened: OpenedAdapter) -> Iterator[tuple[str, str]]:
    base, adapters = opened.target.model.base, opened.adapters
    yield "base model", _base_name(opened)
    whole = opened.target.whole
    if whole is not None:
        yield "part of the base model", f"the language model of {whole}"
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
    yield from _training(opened)
    yield "written by", f"nemo-adapter-launcher {__version__}"


def _training(opened: OpenedAdapter) -> Iterator[tuple[str, str]]:
    """Yield the data files with their hashes and the results of the training, if its records are beside the adapter."""
    provenance, summary = training_record(opened.path, opened.target.model.base.checksum)
    data = below(provenance, "data")
    files = [(key, f"{name}, sha256 {sha256}") for key in data for name, sha256 in named_files(data, key)]
    yield from files or [("data", _UNKNOWN)]
    for key, title in (("steps", "steps"), ("best_val_loss", "best validation loss, nats per answer token")):
        value = summary.get(key)
        if isinstance(value, int | float):
            yield title, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _templates(config: Mapping[str, object]) -> list[str]:
    """Return each task's template; it is what prompts looked like in training."""
    parts = []
    for entry in entries(config, "task_templates"):
        template, answer = entry.get("prompt_template"), entry.get("answer_field")
        quoted = json.dumps(template, ensure_ascii=False)
        parts.append(f"- `{entry.get('taskname')}`: `{quoted}`, which the model continues with `{answer}`")
    return ["\n".join(parts)] if parts else []


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
