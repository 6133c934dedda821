# SPDX-License-Identifier: Apache-2.0
"""Records to samples, with tokenizers simple enough to follow by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from nemo_launcher.families.gpt.samples import GPTSample


def load_samples(
    paths: Sequence[str | Path],
    templates: Sequence[TaskTemplate],
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool = False,
    max_dropped_share: float = 0.0,
    tokens_to_generate: int = 0,
    report: Callable[[str], None] = print,
) -> list[GPTSample]:
    """Return the samples of JSON Lines files, in order.

    max_seq_length: the model's limit in tokens, of which tokens_to_generate are reserved; max_dropped_share: the
    fraction of records, 0 to 1, that may be dropped as too long. Raises UserError for records that do not fit the
    templates, for records without a token to train on, and if too many are dropped.
    """
    encoder = GPTPromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length - tokens_to_generate,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    return encode_files(paths, templates, encoder, max_dropped_share=max_dropped_share, report=report)


class WordTokenizer:
    """Each word is a token, together with the space before it; the vocabulary grows with new words."""

    bos_id, eos_id, pad_id, unk_id = 0, 1, 2, 3

    def __init__(self) -> None:
        self._words = ["<s>", "</s>", "<pad>", "<unk>"]

    def text_to_ids(self, text: str) -> list[int]:
        words = [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]
        return [self._id(word) for word in words if word]

    def ids_to_text(self, ids: list[int]) -> str:
        return "".join(self._words[index] for index in ids)

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


def squad_template(prompt: str = "c: {context} a: {answer}", **changes: Any) -> TaskTemplate:
    values = {"answer_only_loss": True, "answer_field": "answer", **changes}
    return TaskTemplate(taskname="squad", prompt_template=prompt, **values)


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples_of(paths: list[Path], *templates: TaskTemplate, **changes: Any) -> list[GPTSample]:
    options: dict[str, Any] = {
        "add_bos": False,
        "add_eos": True,
        "max_seq_length": 100,
        "for_train": True,
        "report": lambda line: None,
        **changes,
    }
    return load_samples(paths, templates or (squad_template(),), options.pop("tokenizer", WordTokenizer()), **options)
