"""The tokenizer that travels inside a `.nemo` archive, behind the methods of NeMo's TokenizerSpec."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER, Archive
from nemo_launcher.errors import Problem, UserError


class Tokenizer(Protocol):
    """What prompts and generation need of a tokenizer. Ids are None where the tokenizer has no such token."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def unk_id(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, no special tokens added."""

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""


class HuggingFaceTokenizer:
    """A fast Hugging Face tokenizer (`tokenizer.json` and its configuration in a folder)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self.bos_id = self.tokenizer.bos_token_id
        self.eos_id = self.tokenizer.eos_token_id
        self.pad_id = self.tokenizer.pad_token_id
        self.unk_id = self.tokenizer.unk_token_id
        self.vocab_size = len(self.tokenizer)

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, no special tokens added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class SentencePieceTokenizer:
    """A SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.tokenizer: Any = SentencePieceProcessor(model_proto=model)
        ids = (self.tokenizer.bos_id(), self.tokenizer.eos_id(), self.tokenizer.pad_id(), self.tokenizer.unk_id())
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (None if token < 0 else token for token in ids)
        self.vocab_size = self.tokenizer.vocab_size()

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, no special tokens added."""
        return list(self.tokenizer.encode(text))

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return str(self.tokenizer.decode(list(ids)))


def load_tokenizer(archive: Archive) -> Tokenizer:
    """Return the tokenizer of a base checkpoint.

    Source of the keys: NeMo 1.20, MegatronBaseModel._build_tokenizer. Raises UserError when the archive carries none.
    """
    section = archive.config().get("tokenizer") or {}
    library = section.get("library")
    if library == "huggingface":
        with tempfile.TemporaryDirectory() as folder:
            if archive.extract_folder(TOKENIZER_FOLDER, Path(folder)):
                return _opened(archive, lambda: HuggingFaceTokenizer(Path(folder)))
    if library == "sentencepiece" and str(section.get("model", "")).startswith("nemo:"):
        with archive.open(section["model"].removeprefix("nemo:")) as stream:
            model = stream.read()
        return _opened(archive, lambda: SentencePieceTokenizer(model))
    raise UserError(
        Problem(
            f"{archive.path}: tokenizer",
            f"the archive carries no tokenizer (library {library!r})",
            "convert the model again with stages=[conversion_hf2nemo], which puts the tokenizer inside",
        )
    )


def _opened(archive: Archive, make: Callable[[], Tokenizer]) -> Tokenizer:
    """Make a tokenizer; whatever its library says of damaged files becomes a message that names the archive."""
    try:
        return make()
    except Exception as error:  # the libraries raise bare Exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(Problem(f"{archive.path}: tokenizer", f"cannot be read: {reason}")) from error
