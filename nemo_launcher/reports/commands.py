# SPDX-License-Identifier: Apache-2.0
"""The commands that use an adapter and that repeat a run."""

from __future__ import annotations

import shlex

from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.secret_text import hide_keys
from nemo_launcher.files.foreign import read_bytes
from nemo_launcher.reports.html import Html, element, section
from nemo_launcher.reports.runs import Run

_MAX_LOG = 2**22
_MAX_COMMAND = 20_000


def commands(run: Run) -> Html | None:
    """Return the section with the commands; secrets are masked in the launcher's own log already."""
    parts: list[object] = []
    for title, text in (
        ("Use the adapter on records of your own", _use(run)),
        ("Repeat the launch, from the folder in which it was started", launched(run)),
        ("Repeat this job alone; a training resumes from its checkpoint", _command("rerun", run.folder)),
        ("Make this report anew", _command("report", run.folder)),
    ):
        if text:
            parts += [element("h3", title), element("pre", hide_keys(text), tabindex="0")]
    return section("Commands", *parts)


def launched(run: Run) -> str:
    """Return the last command line that launched the job; "" if it was not launched."""
    try:
        text = read_bytes(run.folder / "launcher_cmd.log", _MAX_LOG).decode("utf-8", errors="replace")
    except Exception:  # absent, unreadable or too long
        return ""
    found = [line for line in text.splitlines() if line.strip()]
    return found[-1][:_MAX_COMMAND] if found else ""


def _use(run: Run) -> str:
    keys = ("language_model_path", "adapter_model_file")
    if not run.is_evaluation:
        keys = ("model.language_model_path", "model.nemo_path")
    base, adapter = (value_of(run.values, key) for key in keys)
    files = value_of(run.values, "data_paths") or value_of(run.values, "model.data.validation_ds")
    records = files[0] if isinstance(files, list) and files else "RECORDS.jsonl"
    return _command("generate", "--base", base, "--adapter", adapter, "--jsonl", records) if base and adapter else ""


def _command(*words: object) -> str:
    return shlex.join(["nemo-launcher", *map(str, words)])
