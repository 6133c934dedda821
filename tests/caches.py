# SPDX-License-Identifier: Apache-2.0
"""Data caches for tests: a tokenizer without files, encoders that use it, and loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_launcher.data.cache import cached_samples
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from nemo_launcher.families.t5.prompts import T5PromptEncoder
from tests.engine import TEMPLATE, squad_records, write_jsonl

SQUAD = TaskTemplate(taskname="squad", prompt_template=TEMPLATE, answer_only_loss=True, answer_field="answer")


class ByteTokenizer:
    """Each UTF-8 byte is a token, after the special tokens and two sentinels."""

    bos_id, eos_id, pad_id, unk_id, vocab_size = 0, 1, 2, 3, 1 << 20
    special_ids = frozenset({0, 1, 2, 4, 5})

    def __init__(self, identity: str | None = "bytes", first: int = 6) -> None:
        self.identity, self.first = identity, first
        self.num_encoded = 0

    def text_to_ids(self, text: str) -> list[int]:
        self.num_encoded += 1
        return [byte + self.first for byte in text.encode()]

    def ids_to_text(self, ids: Any) -> str:
        return bytes(token - self.first for token in ids).decode(errors="replace")

    def token_to_id(self, token: str) -> int | None:
        return {"<extra_id_0>": 4, "<extra_id_1>": 5}.get(token)


def gpt_encoder(**changes: Any) -> GPTPromptEncoder:
    options = {"tokenizer": ByteTokenizer(), "add_bos": False, "add_eos": True, "max_seq_length": 1000}
    return GPTPromptEncoder(**{**options, "for_train": True, **changes})


def t5_encoder(**changes: Any) -> T5PromptEncoder:
    options = {"tokenizer": ByteTokenizer(), "add_bos": False, "add_eos": True, "max_seq_length": 1000}
    return T5PromptEncoder(**{**options, "for_train": True, **changes})


def load(paths: list[Path], encoder: Any, folder: Path, report: Callable[[str], None] = print, **changes: Any) -> Any:
    options: dict[str, Any] = {"max_dropped_share": 0.0, "with_prefixes": True, "folders": [folder]} | changes
    templates = options.pop("templates", [SQUAD])
    return cached_samples([str(path) for path in paths], templates, encoder, report=report, **options)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def write_data(folder: Path) -> list[Path]:
    """Write two files with 40 records in total."""
    records = squad_records(40)
    records[7]["answer"] = "an old town, über die Brücke 🌉"
    return [write_jsonl(folder / "a.jsonl", records[:24]), write_jsonl(folder / "b.jsonl", records[24:])]


def without_record(samples: Any) -> list[Any]:
    return [replace(sample, record={}) for sample in samples]
