# SPDX-License-Identifier: Apache-2.0
"""Tokenizers loaded with the `tokenizers` library only, without transformers, which is slow to import."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from nemo_launcher.data.chat import Chat
from nemo_launcher.files.foreign import decode, load_json, parse_json, read_bytes, reading

_END_OF_TEXT = "<|endoftext|>"
MAX_GROWTH = 64
"""The maximum factor by which replacements may lengthen a text; models replace a space by a symbol of three bytes."""
CHAT_TEMPLATE = "chat_template.jinja"
"""The file of a chat template; older folders have it in tokenizer_config.json."""
MAX_TEMPLATE_BYTES = 1 << 20
"""The maximum size of a chat template."""
_MAX_PREFIX = 1000  # characters that are prepended to a text


def identity_of(library: str, *parts: bytes) -> str:
    """Return a hash of a tokenizer's library and of everything that its token ids depend on."""
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    return hashlib.sha256(" ".join([library, version(library), *digests]).encode()).hexdigest()


def check_backend(tokenizer: Library) -> None:
    """Raise ValueError for random token ids (dropout), and for replacements that may exhaust the memory."""
    if getattr(tokenizer.model, "dropout", None):
        raise ValueError("it skips merges at random (dropout), so that token ids are not reproducible")
    steps = [_steps(part) for part in (tokenizer.normalizer, tokenizer.decoder)]
    for step in (step for part in steps for step in part if step.get("type") == "Prepend"):
        if len(step["prepend"]) > _MAX_PREFIX:
            raise ValueError(f"it prepends {len(step['prepend']):,} characters to every text")
    for part in steps:
        growth = math.prod(max(1, len(step["content"])) for step in part if step.get("type") == "Replace")
        if growth > MAX_GROWTH:
            raise ValueError(f"its replacements lengthen a text up to {growth:,} times; the limit is {MAX_GROWTH}")


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or decoder, including those in nested sequences."""
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

    def __init__(self, tokenizer: Library, special: Mapping[str, int], chat: Chat | None = None) -> None:
        check_backend(tokenizer)
        self.chat = chat
        self.tokenizer = tokenizer
        self.bos_id, self.eos_id = special.get("bos"), special.get("eos")
        self.pad_id, self.unk_id = special.get("pad"), special.get("unk")
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.special_ids = frozenset(special.values())

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the tokenizer in its library's serialization."""
        outside = [self.bos_id, self.eos_id, self.pad_id, self.unk_id]
        return identity_of("tokenizers", self.tokenizer.to_str().encode(), json.dumps(outside).encode())

    def text_to_ids(self, text: str) -> list[int]:
        """Return the token ids of `text`; special tokens are recognized in it, but not added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text_to_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text`, and the first character of each and the one after it."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the tokenizer does not have it."""
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)


class GPT2Tokenizer(FastTokenizer):
    """GPT-2's byte-level BPE tokenizer, from vocab.json and merges.txt.

    <|endoftext|> is its BOS, EOS and padding token, and is recognized in texts. Source: NeMo 1.20's
    `megatron-gpt-345m`, which is Hugging Face's `gpt2` with these files.
    """

    def __init__(self, vocab_file: Path, merge_file: Path) -> None:
        tokenizer = Library(models.BPE.from_file(str(vocab_file), str(merge_file)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([_END_OF_TEXT])
        end = int(tokenizer.get_vocab()[_END_OF_TEXT])
        super().__init__(tokenizer, dict.fromkeys(("bos", "eos", "pad", "unk"), end))


PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""The tokenizer classes of transformers 5 and 4 that use tokenizer.json unchanged."""
# Keys of tokenizer_config.json that add tokens to those of tokenizer.json.
_ADDING = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")


def read_plain(folder: Path) -> FastTokenizer | None:
    """Return the tokenizer of a Hugging Face folder if tokenizer.json defines it completely; None: use transformers.

    Raises what the `tokenizers` library raises for a damaged file.
    """
    paths = [folder / "tokenizer_config.json", folder / "tokenizer.json"]
    if not all(path.is_file() for path in paths) or (folder / "special_tokens_map.json").exists():
        return None
    config = load_json(paths[0])
    if config.get("tokenizer_class") not in PLAIN_CLASSES or any(config.get(key) for key in _ADDING):
        return None
    tokenizer = Library.from_buffer(read_bytes(paths[1]))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    added = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {key.removesuffix("_token"): value for key, value in config.items() if key.endswith("_token") and value}
    if not all(isinstance(token, str) and token in added for token in named.values()):
        return None
    template = _chat_template(folder, config)
    special = tuple(sorted((f"{name}_token", token) for name, token in named.items()))
    chat = None if template is None else Chat(template, special)
    return FastTokenizer(tokenizer, {name: added[token] for name, token in named.items()}, chat)


def prefix_space(tokenizer: Library) -> dict[str, bool]:
    """Return the option that keeps a byte-level tokenizer's space before each text, which transformers 4 drops."""
    return {"add_prefix_space": True} if getattr(tokenizer.pre_tokenizer, "add_prefix_space", False) else {}


def prefix_space_in(folder: Path) -> dict[str, bool]:
    """Return `prefix_space` of the tokenizer.json in a folder; nothing without one."""
    path = folder / "tokenizer.json"
    return prefix_space(Library.from_buffer(read_bytes(path))) if path.is_file() else {}


def _chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """Return the chat template of a Hugging Face folder, in a file of its own or in the configuration."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        return decode(read_bytes(path, MAX_TEMPLATE_BYTES), path.name)
    template = config.get("chat_template")
    return template if isinstance(template, str) else None


def counter_of_json(content: bytes, source: str) -> Callable[[str], int]:
    """Return what counts a text's tokens as a tokenizer.json does. Raises UserError for a damaged one."""
    with reading(source):
        tokenizer = Library.from_buffer(content)
        check_backend(tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def count(text: str) -> int:
        with reading(source):
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
