# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: versions, the commit, and checksums of the base and the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_launcher.reports.html import Html, element, facts, section, table
from nemo_launcher.reports.runs import Run

_MAX_FILES = 200
_MAX_TEXT = 500


def provenance(run: Run) -> Html | None:
    """Return the section about the training behind a run and, for an evaluation, the job itself; None if unknown."""
    own = run.provenance
    found = [("This job", own)] if own else []
    if run.is_evaluation and run.training is not None and run.training.provenance:
        found.append(("The training", run.training.provenance))
    parts = [part for title, values in found for part in _parts(title, values)]
    return section("Provenance", *parts) if parts else None


def _parts(title: str, values: Mapping[str, Any]) -> list[Html | None]:
    base = values.get("base")
    base = base if isinstance(base, dict) else {}
    packages = values.get("packages")
    listed = (
        ", ".join(f"{name} {version}" for name, version in packages.items()) if isinstance(packages, dict) else None
    )
    changed = values.get("modified")
    modified = None if not isinstance(changed, bool) else "yes, in tracked files" if changed else "no"
    names = ("started", "nemo-adapter-launcher", "commit")
    rows = [(name, _text(values.get(name))) for name in names]
    rows += [
        ("changes to the checkout", modified),
        ("python", _text(values.get("python"))),
        ("packages", _text(listed)),
    ]
    rows += [(name, _text(values.get(name))) for name in ("system", "device", "ranks")]
    rows += [("base", _text(base.get("path"))), ("base, fingerprint of its weights", _text(base.get("weights")))]
    rows += [("base, checksum", _text(base.get("checksum"))), ("base, tokenizer", _text(base.get("tokenizer")))]
    adapter = values.get("adapter")
    if isinstance(adapter, dict):
        rows += [("adapter", _text(adapter.get("path"))), ("adapter, SHA-256", _text(adapter.get("sha256")))]
    return [element("h3", title), facts(rows, caption=f"{title}: versions, machine and base"), _data(title, values)]


def _data(title: str, values: Mapping[str, Any]) -> Html | None:
    data = values.get("data")
    files = [
        [_text(key), _text(entry.get("path")), _text(entry.get("source")), _text(entry.get("sha256"))]
        for key, entries in (data.items() if isinstance(data, dict) else ())
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    ]
    if not files:
        return None
    return table(["key", "file", "source", "SHA-256"], files[:_MAX_FILES], caption=f"{title}: data files")


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:_MAX_TEXT]
