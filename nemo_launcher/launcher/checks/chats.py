# SPDX-License-Identifier: Apache-2.0
"""Check that the base of conversations has a chat template, from the files of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_launcher.checkpoint.hf_folder import PROCESSOR_TEMPLATE
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.data.record_forms import WITHOUT_CHATS
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.launcher.checks.tokenizer_files import tokenizer_files
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning

FILES = ("chat_template.jinja", PROCESSOR_TEMPLATE, "tokenizer_config.json")
"""The files that may hold a chat template."""


def check_chats(stage: Learning, earlier: Sequence[Stage], probe: LaunchProbe) -> list[Problem]:
    """Return a problem if a training learns conversations and its base has no chat template, as far as can be known."""
    chats = [place for place, entry in enumerate(stage.section.model.task_templates) if entry.template_format == "chat"]
    if not chats:
        return []
    is_t5 = stage.family in FAMILIES and FAMILIES[stage.family].engine == "t5"
    files = {} if is_t5 else tokenizer_files(stage, earlier, probe, FILES)
    if files is None or _has_template(files):
        return []
    base = "a T5" if is_t5 else f"the tokenizer of {stage.section.model.language_model_path}"
    what = f"the records are conversations, but {base} has no chat template"
    return [Problem(stage.key(f"model.task_templates.{chats[0]}"), what, WITHOUT_CHATS)]


def _has_template(files: dict[str, bytes]) -> bool:
    *alone, config = FILES
    if any(name in files for name in alone):
        return True
    try:
        found = parse_json(files[config], config) if config in files else {}
    except UserError:  # reported by the checks of models
        return True
    return isinstance(found, dict) and bool(found.get("chat_template"))
