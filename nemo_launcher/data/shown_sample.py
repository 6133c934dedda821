# SPDX-License-Identifier: Apache-2.0
"""A sample as the model sees it, in text: special tokens by name, and the tokens in the loss marked."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from nemo_launcher.data.printable import printable
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.tokenizers import Tokenizer

TRAINED, CONTEXT = ">", "|"
"""What stands before lines of text in the loss, and before other lines."""
_WIDTH = 74
_SHOWN_CHARACTERS = 700


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A part of a sample in text."""

    text: str
    """Its text, with special tokens by name."""
    is_trained: bool
    """Whether it is in the loss."""
    title: str
    """What it is, for a model with several sequences; else empty."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample in text."""

    source: str
    """`file:line` of its record."""
    tokens: int
    """The number of its input tokens in training."""
    trained_tokens: int
    """The number of its tokens in the loss."""
    parts: tuple[ShownPart, ...]
    """All of its tokens as text."""

    @classmethod
    def of(cls, sample: Sample, text_of: Callable[[Sequence[int]], str], *, is_trained: bool) -> ShownSample:
        """Return a sample in text. text_of: see `spelled_out`; is_trained: whether it is made for training."""
        runs = groupby(sample.parts, lambda part: (part.title, part.is_trained and is_trained))
        parts = [
            ShownPart(text_of([token for part in run for token in part.ids]), in_loss, title)
            for (title, in_loss), run in runs
        ]
        trained = sample.num_trained_tokens if is_trained else 0
        return cls(sample.source, sample.num_input_tokens, trained, tuple(part for part in parts if part.text))

    def lines(self) -> list[str]:
        """Return lines of at most 80 columns; long parts are shortened in the middle."""
        found = [f"{self.source}: {self.tokens:,} tokens, {self.trained_tokens:,} in the loss"]
        title = ""
        for part in self.parts:
            if part.title != title:
                title = part.title
                found.append(f"  {title}:")
            mark = TRAINED if part.is_trained else CONTEXT
            found += [f"  {mark} {line}" for line in _wrapped(_shortened(part.text))]
        return found


def spelled_out(tokenizer: Tokenizer) -> Callable[[Sequence[int]], str]:
    """Return what turns token ids into text with special tokens by name, which `ids_to_text` omits."""
    names: dict[int, str | None] = {}

    def special_name(token: int) -> str | None:
        if token not in names:
            is_special = token in tokenizer.special_ids or not tokenizer.ids_to_text([token])
            name = _name(tokenizer, token) if is_special else None
            names[token] = (
                name if name is not None and (token in tokenizer.special_ids or name[:1] in ("<", "[")) else None
            )
        return names[token]

    def text_of(ids: Sequence[int]) -> str:
        pieces = []
        for name, run in groupby(ids, special_name):
            tokens = list(run)
            pieces.append(tokenizer.ids_to_text(tokens) if name is None else name * len(tokens))
        return "".join(pieces)

    return text_of


def _name(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's text in its library, or its role."""
    library = getattr(tokenizer, "tokenizer", None)
    for method in ("id_to_token", "convert_ids_to_tokens", "id_to_piece"):
        if hasattr(library, method):
            try:
                found = getattr(library, method)(token)
            except (IndexError, ValueError, OverflowError):  # added by us: the library does not know it
                break
            if found:
                return str(found)
    roles = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>", tokenizer.pad_id: "<pad>"}
    return roles.get(token, f"<{token}>")


def _shortened(text: str) -> str:
    left = len(text) - _SHOWN_CHARACTERS
    if left <= 0:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} [... {left:,} characters ...] {text[-half:]}"


def _wrapped(text: str) -> list[str]:
    """Return text in lines of at most 74 columns, without characters that would control a terminal."""
    wrap = textwrap.TextWrapper(_WIDTH, drop_whitespace=False, replace_whitespace=False, expand_tabs=False)
    return [line.rstrip() for paragraph in printable(text).split("\n") for line in (wrap.wrap(paragraph) or [""])]
