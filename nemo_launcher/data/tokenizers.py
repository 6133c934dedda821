# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a `.nemo` archive, with the methods of NeMo's TokenizerSpec."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.chat import Chat
from nemo_launcher.data.fast_tokenizers import (
    PLAIN_CLASSES,
    GPT2Tokenizer,
    check_backend,
    identity_of,
    prefix_space_in,
    read_plain,
)
from nemo_launcher.data.tokenizer_folder import check_folder, read_settings
from nemo_launcher.data.tokenizer_kinds import absent_files, folder_inside, gpt2_members, kind_of, sentencepiece_member
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, reading
from nemo_launcher.files.temporary import temporary_folder
from nemo_launcher.files.values import Section, below, whole
from nemo_launcher.requirements import is_transformers_5

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_SENTINEL, END_SENTINEL = "<extra_id_0>", "<extra_id_1>"
"""T5's first two sentinels: the place of the answer in the prompt, and what follows the answer."""


class Tokenizer(Protocol):
    """The interface of tokenizers for prompts and generation. Ids are None for tokens that do not exist."""

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
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def identity(self) -> str | None:
        """A hash of its files' content and its library, which determine token ids; None if unknown."""

    @property
    def chat(self) -> Chat | None:
        """The chat template in its files; None if there is none, or its library does not tell tokens' places."""

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text` without adding special tokens."""

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the tokenizer does not have it."""


def from_folder(folder: Path, **options: object) -> PreTrainedTokenizerBase:
    """Return the tokenizer that transformers reads from a folder, without running code from it."""
    import transformers

    reader = transformers.AutoTokenizer
    if not is_transformers_5():  # version 4 does not know all that version 5 writes
        settings = read_settings(folder)
        extra = settings.get("extra_special_tokens")
        if isinstance(extra, list):
            options |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
        if settings.get("tokenizer_class") in PLAIN_CLASSES:
            reader = transformers.PreTrainedTokenizerFast
            options.pop("config", None)  # only the choice of a class needs it
            options |= {} if "gguf_file" in options else prefix_space_in(folder)
    found: PreTrainedTokenizerBase = reader.from_pretrained(
        str(folder), trust_remote_code=False, local_files_only=True, **options
    )
    return found


class ChatTokenizer(Tokenizer, Protocol):
    """The interface of tokenizers with a chat template: they also tell where tokens are in a text."""

    def text_to_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text`, and the first character of each and the one after it."""


class HuggingFaceTokenizer:
    """A tokenizer that transformers reads from a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

        self.tokenizer = from_folder(folder)
        self.tokenizer.model_max_length = VERY_LARGE_INTEGER  # the base determines the length, not the file
        if getattr(self.tokenizer, "backend_tokenizer", None) is not None:
            check_backend(self.tokenizer.backend_tokenizer)
        self.bos_id = self.tokenizer.bos_token_id
        self.eos_id = self.tokenizer.eos_token_id
        self.pad_id = self.tokenizer.pad_token_id
        self.unk_id = self.tokenizer.unk_token_id
        self.vocab_size = len(self.tokenizer)
        self.special_ids = frozenset(self.tokenizer.all_special_ids)
        template, special = self.tokenizer.chat_template, self.tokenizer.special_tokens_map
        fast = getattr(self.tokenizer, "backend_tokenizer", None) is not None
        named = {name: token for name, token in special.items() if isinstance(token, str)}
        self.chat = Chat(template, tuple(sorted(named.items()))) if isinstance(template, str) and fast else None

    @functools.cached_property  # cached: encoding a text may change settings of the library
    def identity(self) -> str | None:
        """A hash of the tokenizer in its library's serialization; None for a tokenizer written in Python."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None:
            return None
        outside = [self.bos_id, self.eos_id, self.tokenizer.split_special_tokens, version("transformers")]
        return identity_of("tokenizers", fast.to_str().encode(), json.dumps(outside).encode())

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text` without adding special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text_to_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text`, and the first character of each and the one after it."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), list(found["offset_mapping"])

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the tokenizer does not have it."""
        found = self.tokenizer.get_vocab().get(token)
        return None if found is None else int(found)


class SentencePieceTokenizer:
    """A SentencePiece tokenizer."""

    chat = None

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        if not model:  # the library would treat it as no model
            raise ValueError("it is empty")
        self.tokenizer = SentencePieceProcessor(model_proto=model)
        ids = (self.tokenizer.bos_id(), self.tokenizer.eos_id(), self.tokenizer.pad_id(), self.tokenizer.unk_id())
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (None if token < 0 else token for token in ids)
        self.vocab_size: int = self.tokenizer.vocab_size()
        self.identity = identity_of("sentencepiece", model)
        self.special_ids = frozenset(token for token in (self.bos_id, self.eos_id, self.pad_id) if token is not None)

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text` without adding special tokens."""
        return list(self.tokenizer.encode(text))

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids)))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the tokenizer does not have it."""
        found = int(self.tokenizer.piece_to_id(token))
        return None if found == self.unk_id and token != self.tokenizer.id_to_piece(found) else found


class T5SentencePieceTokenizer(SentencePieceTokenizer):
    """A SentencePiece tokenizer with the special tokens that NeMo appends to its vocabulary for T5.

    These are <cls>, <sep>, <mask>, those of <pad>, <bos> and <eos> that the model lacks, and the sentinels
    <extra_id_N>. They are recognized in texts. Source of the order: NeMo 1.20,
    MegatronT5Model.add_special_tokens_to_tokenizer. section: the `tokenizer` section of the base's configuration.
    """

    def __init__(self, model: bytes, section: Section) -> None:
        super().__init__(model)
        self.identity = identity_of("sentencepiece", model, json.dumps(dict(section), sort_keys=True).encode())
        first = bool(section.get("add_sentinel_tokens_first", False))
        self._added: dict[str, int] = {}
        sentinels = [f"<extra_id_{number}>" for number in range(whole(section, "num_sentinel_tokens") or 0)]
        if section.get("add_sentinel_tokens_in_reverse_order", False):
            sentinels.reverse()
        if first:
            self._add(sentinels)
        self._add(["<cls>", "<sep>", "<mask>"])
        # NeMo treats id 0 as missing, except for the padding token of a vocabulary that starts with sentinels.
        self.pad_id = self._own_or_added(self.pad_id, "<pad>", lowest=0 if first else 1)
        self.bos_id = self._own_or_added(self.bos_id, "<bos>")
        self.eos_id = self._own_or_added(self.eos_id, "<eos>")
        if not first:
            self._add(sentinels)
        self.special_ids = frozenset({self.pad_id, self.bos_id, self.eos_id, *self._added.values()})
        self._pattern = re.compile("(" + "|".join(map(re.escape, self._added)) + ")")

    def _add(self, tokens: Sequence[str]) -> None:
        for token in tokens:
            own = super().token_to_id(token)
            self._added[token] = self.vocab_size if own is None else own
            self.vocab_size += own is None

    def _own_or_added(self, own: int | None, token: str, lowest: int = 1) -> int:
        if own is None or own < lowest:
            self._add([token])
            return self._added[token]
        return own

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`; special tokens are recognized in it, but not added."""
        ids: list[int] = []
        for part in self._pattern.split(text):
            ids += [self._added[part]] if part in self._added else super().text_to_ids(part)
        return ids

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return super().ids_to_text([token for token in ids if token not in self.special_ids])

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the tokenizer does not have it."""
        return self._added[token] if token in self._added else super().token_to_id(token)


def load_tokenizer(archive: Archive) -> Tokenizer:
    """Return the tokenizer of a base checkpoint.

    Raises UserError if its files cannot be read, or are neither in the archive nor in the folder that the `type` of a
    Hugging Face tokenizer names.
    """
    section = below(archive.config(), "tokenizer")
    problem = absent_files(section, archive.names, str(archive.path))
    if problem is not None:
        raise UserError(problem)
    kind = kind_of(section)
    assert kind is not None  # a section that names no kind is a problem
    module, _, name = kind.reader.partition(":")
    tokenizer: Tokenizer = getattr(importlib.import_module(module), name)(archive, section)
    return tokenizer


def highest_id(tokenizer: Tokenizer) -> int:
    """Return the highest token id, which may exceed the number of tokens; -1 for a tokenizer without tokens."""
    vocabulary = getattr(getattr(tokenizer, "tokenizer", None), "get_vocab", None)
    return max(vocabulary().values(), default=-1) if vocabulary is not None else tokenizer.vocab_size - 1


def read_hugging_face(archive: Archive, section: Section) -> Tokenizer:
    """Read a Hugging Face folder, of the archive or outside it."""
    with temporary_folder(archive.folder_size(folder_inside(section))) as folder:
        if archive.extract_folder(folder_inside(section), folder):
            return _created(archive, lambda: _hugging_face(folder, f"{archive.path}: {folder_inside(section)}"))
    outside = Path(str(section["type"]))
    return _created(archive, lambda: _hugging_face(outside, str(outside)))


def _hugging_face(folder: Path, source: str) -> Tokenizer:
    check_folder(folder, source)
    return read_plain(folder) or HuggingFaceTokenizer(folder)


def read_gpt2(archive: Archive, section: Section) -> Tokenizer:
    """Read GPT-2's vocabulary and merges."""
    with temporary_folder(archive.folder_size("")) as folder:
        files = {}
        for key, member in gpt2_members(section).items():
            files[key] = folder / key
            files[key].write_bytes(archive.read(member, MAX_TEXT_BYTES))
        return _created(archive, lambda: GPT2Tokenizer(**files))


def read_sentencepiece(archive: Archive, section: Section) -> Tokenizer:
    """Read a SentencePiece model."""
    model = archive.read(sentencepiece_member(section), MAX_TEXT_BYTES)
    if section.get("num_sentinel_tokens") is not None:  # only T5 models have sentinels in NeMo
        return _created(archive, lambda: T5SentencePieceTokenizer(model, section))
    return _created(archive, lambda: SentencePieceTokenizer(model))


def _created(archive: Archive, make: Callable[[], Tokenizer]) -> Tokenizer:
    """Return the tokenizer that `make` creates. Raises UserError with the archive's name for damaged files."""
    with reading(f"{archive.path}: tokenizer", "copy or convert the archive again"):
        return make()
