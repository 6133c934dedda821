# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that the `tokenizers` library reads by itself, without transformers, which takes a while to import."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from nemo_launcher.files.foreign import load_json, parse_json, read_bytes

_END_OF_TEXT = "<|endoftext|>"
MAX_GROWTH = 64
"""How many times as long its replacements may make a text; models replace a space by one sign of three bytes."""
_MAX_PREFIX = 1000  # characters that are put before a text


def identity_of(library: str, *parts: bytes) -> str:
    """Return a hash of a tokenizer's library and of all that its token ids depend on."""
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    return hashlib.sha256(" ".join([library, version(library), *digests]).encode()).hexdigest()


def check_backend(tokenizer: Library) -> None:
    """Raise ValueError for token ids that chance decides, and for replacements that let a text fill any memory."""
    if getattr(tokenizer.model, "dropout", None):
        raise ValueError("it leaves out merges at random (dropout): a text would not get the same token ids twice")
    steps = [_steps(part) for part in (tokenizer.normalizer, tokenizer.decoder)]
    for step in (step for part in steps for step in part if step.get("type") == "Prepend"):
        if len(step["prepend"]) > _MAX_PREFIX:
            raise ValueError(f"it puts {len(step['prepend']):,} characters before every text")
    for part in steps:
        growth = math.prod(max(1, len(step["content"])) for step in part if step.get("type") == "Replace")
        if growth > MAX_GROWTH:
            raise ValueError(f"its replacements make a text up to {growth:,} times as long; {MAX_GROWTH} is the limit")


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or decoder, those in sequences too."""
    if part is None:
        return []
    waiting, found = [parse_json(part.__getstate__(), "tokenizer.json")], []
    while waiting:
        step = waiting.pop()
        waiting += step.get("normalizers", step.get("decoders", []))
        found.append(step)
    return found


class FastTokenizer:
    """A tokenizer of the `tokenizers` library. special: the ids of its bos, eos, pad and unk tokens, by these names."""

    def __init__(self, tokenizer: Library, special: Mapping[str, int]) -> None:
        check_backend(tokenizer)
        self.tokenizer = tokenizer
        self.bos_id, self.eos_id = special.get("bos"), special.get("eos")
        self.pad_id, self.unk_id = special.get("pad"), special.get("unk")
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.special_ids = frozenset(special.values())

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the tokenizer as its library writes it."""
        outside = [self.bos_id, self.eos_id, self.pad_id, self.unk_id]
        return identity_of("tokenizers", self.tokenizer.to_str().encode(), json.dumps(outside).encode())

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, no special tokens added but those that are written in it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token, None when the tokenizer has no such token."""
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)


class GPT2Tokenizer(FastTokenizer):
    """GPT-2's byte-level BPE from its two files, vocab.json and merges.txt.

    <|endoftext|> begins and ends texts, pads, and stands for itself where a text holds it. Source: NeMo 1.20's
    `megatron-gpt-345m`, which is Hugging Face's `gpt2` with these files.
    """

    def __init__(self, vocab_file: Path, merge_file: Path) -> None:
        tokenizer = Library(models.BPE.from_file(str(vocab_file), str(merge_file)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([_END_OF_TEXT])
        end = int(tokenizer.get_vocab()[_END_OF_TEXT])
        super().__init__(tokenizer, dict.fromkeys(("bos", "eos", "pad", "unk"), end))


# The tokenizer classes of transformers that take tokenizer.json as it is; the others change what it says.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
# Keys of tokenizer_config.json that add tokens to tokenizer.json's
_ADDING = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")


def read_plain(folder: Path) -> FastTokenizer | None:
    """Return the tokenizer of a Hugging Face folder when tokenizer.json says all of it; None: only transformers knows.

    Whatever the `tokenizers` library raises for a damaged file is passed on.
    """
    paths = [folder / "tokenizer_config.json", folder / "tokenizer.json"]
    if not all(path.is_file() for path in paths) or (folder / "special_tokens_map.json").exists():
        return None
    config: dict[str, Any] = load_json(paths[0])
    if config.get("tokenizer_class") not in _PLAIN_CLASSES or any(config.get(key) for key in _ADDING):
        return None
    tokenizer = Library.from_buffer(read_bytes(paths[1]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {key.removesuffix("_token"): value for key, value in config.items() if key.endswith("_token") and value}
    if not all(isinstance(token, str) and token in added for token in named.values()):
        return None
    return FastTokenizer(tokenizer, {name: added[token] for name, token in named.items()})
