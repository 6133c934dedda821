# SPDX-License-Identifier: Apache-2.0
"""Counting a text's tokens and rendering chats without torch and transformers, for estimates at launch."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.chat import Chat
from nemo_launcher.data.fast_tokenizers import CHAT_TEMPLATE, counter_of_json
from nemo_launcher.data.tokenizer_kinds import absent_files, folder_inside, kind_of
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import decode, parse_json, quiet_panics
from nemo_launcher.files.values import below

Counter = Callable[[str], int]
MAX_BYTES = 8 << 20
"""The maximum size of a tokenizer that is read: one of 128,000 tokens takes half a second."""


def token_counter(archive: Archive) -> Counter:
    """Return what counts a text's tokens as an archive's tokenizer does, special tokens apart.

    If the tokenizer is large, damaged or not in the archive, tokens are estimated (about_tokens).
    """
    section = below(archive.config(), "tokenizer")
    kind = kind_of(section)
    if kind is None or absent_files(section, archive.names, str(archive.path)) is not None:
        return about_tokens
    with contextlib.suppress(UserError, OSError), quiet_panics():
        if section.get("library") != "huggingface" or not kind.reader.endswith("hugging_face"):
            module, _, name = kind.reader.partition(":")
            tokenizer = getattr(importlib.import_module(module), name)(archive, section)
            return lambda text: len(tokenizer.text_to_ids(text))
        member = f"{folder_inside(section)}/tokenizer.json"
        if member in archive.names and archive.size(member) <= MAX_BYTES:
            return counter_of_json(archive.read(member, MAX_BYTES), f"{archive.path}: {member}")
    return about_tokens


def chat_of(archive: Archive) -> Chat | None:
    """Return the chat template of an archive's Hugging Face tokenizer; None if it has none or it cannot be read."""
    section = below(archive.config(), "tokenizer")
    members = {name: f"{folder_inside(section)}/{name}" for name in (CHAT_TEMPLATE, "tokenizer_config.json")}
    found = {name: member for name, member in members.items() if member in archive.names}
    if section.get("library") != "huggingface" or not found:
        return None
    with contextlib.suppress(UserError, OSError):
        texts = {name: decode(archive.read(member, MAX_BYTES), member) for name, member in found.items()}
        config = parse_json(texts.pop("tokenizer_config.json", "{}"), "tokenizer_config.json")
        if isinstance(config, dict):
            template = texts.get(CHAT_TEMPLATE, config.get("chat_template"))
            named = {name: value for name, value in config.items() if name.endswith("_token")}
            special = {
                name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()
            }
            tokens = tuple((name, text) for name, text in special.items() if isinstance(text, str))
            return Chat(template, tokens) if isinstance(template, str) else None
    return None


def about_tokens(text: str) -> int:
    """Return about how many tokens a text has: in ASCII one per four characters, as in English, otherwise one each."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 4) + len(text) - ascii_characters
