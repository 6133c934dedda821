# SPDX-License-Identifier: Apache-2.0
"""Check that a T5's decoder has a token to start with, from the files of its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.config.overrides import override
from nemo_launcher.data.tokenizer_kinds import folder_inside
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, parse_json, read_bytes
from nemo_launcher.files.values import below
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning

WITHOUT_BOS = ("T5Tokenizer", "T5TokenizerFast")
"""Tokenizers of transformers that have a BOS token only if their files name one."""
FILES = ("tokenizer_config.json", "special_tokens_map.json")


def check_decoder_start(stage: Learning, earlier: list[Stage], probe: LaunchProbe) -> list[Problem]:
    """Return a problem if the decoder would start with BOS and the tokenizer has none, as far as can be known."""
    if stage.family != "t5" or stage.section.model.data.decoder_starts_with_pad:
        return []
    base = Path(stage.section.model.language_model_path)
    source = next((s.source for s in earlier if isinstance(s, Conversion) and base in s.outputs()), None)
    try:
        lacks_bos = _base_lacks_bos(base, probe) if source is None else _lacks_bos(lambda name: _file(source / name))
    except (OSError, UserError):  # reported by the checks of models
        return []
    if not lacks_bos:
        return []
    key = stage.key("model.data.decoder_starts_with_pad")
    what = "is False, so the decoder would start with BOS, but the base's tokenizer has no such token"
    return [Problem(key, what, f"++{override(key, True)}")]


def _base_lacks_bos(base: Path, probe: LaunchProbe) -> bool:
    outline = probe.known_outline(base)
    if outline is None or outline.sizes is None:  # absent, or too slow to unpack
        return False
    section = below(outline.config, "tokenizer")
    if section.get("library") != "huggingface":
        return False
    folder = folder_inside(section)
    with Archive(base) as archive:
        return _lacks_bos(
            lambda name: (
                archive.read(member, MAX_TEXT_BYTES) if (member := f"{folder}/{name}") in archive.names else None
            )
        )


def _file(path: Path) -> bytes | None:
    return read_bytes(path) if path.is_file() else None


def _lacks_bos(read: Callable[[str], bytes | None]) -> bool:
    """read: returns a file of the tokenizer's folder; None for an absent one."""
    found = [parse_json(content, name) for name in FILES if (content := read(name)) is not None]
    sections = [values for values in found if isinstance(values, dict)]
    named = any(values.get("tokenizer_class") in WITHOUT_BOS for values in sections)
    return named and not any(values.get("bos_token") for values in sections)
