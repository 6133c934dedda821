# SPDX-License-Identifier: Apache-2.0
"""Check that a T5's decoder has a token to start with, from the files of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.launcher.checks.tokenizer_files import tokenizer_files
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning

WITHOUT_BOS = ("T5Tokenizer", "T5TokenizerFast")
"""Tokenizers of transformers that have a BOS token only if their files name one."""
FILES = ("tokenizer_config.json", "special_tokens_map.json")


def check_decoder_start(stage: Learning, earlier: Sequence[Stage], probe: LaunchProbe) -> list[Problem]:
    """Return a problem if the decoder would start with BOS and the tokenizer has none, as far as can be known."""
    if stage.family != "t5" or stage.section.model.data.decoder_starts_with_pad:
        return []
    files = tokenizer_files(stage, earlier, probe, FILES)
    if files is None or not _lacks_bos(files):
        return []
    key = stage.key("model.data.decoder_starts_with_pad")
    what = "is False, so the decoder would start with BOS, but the base's tokenizer has no such token"
    return [Problem(key, what, f"++{override(key, True)}")]


def _lacks_bos(files: dict[str, bytes]) -> bool:
    """Return whether a tokenizer has no BOS token. files: those of FILES that it has."""
    try:
        found = [parse_json(content, name) for name, content in files.items()]
    except UserError:  # reported by the checks of models
        return False
    sections = [values for values in found if isinstance(values, dict)]
    named = any(values.get("tokenizer_class") in WITHOUT_BOS for values in sections)
    return named and not any(values.get("bos_token") for values in sections)
