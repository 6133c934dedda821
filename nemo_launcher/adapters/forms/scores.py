# SPDX-License-Identifier: Apache-2.0
"""The scores of an exported adapter: of its training, beside its file, and of an evaluation, whose folder is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.files.foreign import load_json
from nemo_launcher.files.values import below, entries
from nemo_launcher.runtime.figures_file import FIGURES_SUFFIX, Measured, read_figures
from nemo_launcher.runtime.progress_file import SUMMARY_NAME
from nemo_launcher.runtime.provenance import PROVENANCE_NAME

OPTION = "--results"
_FIX = "name the results folder of an evaluation of this adapter, such as RESULTS_DIR/results"


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of an evaluation."""

    figures: Sequence[Measured]
    """The figures, those of all questions first."""
    data: Sequence[tuple[str, str]]
    """The name and the SHA-256 of each data file."""


def read_scores(place: str | Path, adapter: str | Path) -> Scores:
    """Return the scores in an evaluation's folder, `place` itself or `results` in it, or of one figures file.

    Raises UserError if there are none or several, and unless provenance.json beside them names this adapter's content.
    """
    path = _figures_path(Path(place))
    provenance = path.with_name(PROVENANCE_NAME)
    record = load_json(provenance) if provenance.is_file() else None
    if not isinstance(record, dict):
        what = f"{path.parent} has no {PROVENANCE_NAME}, which says whose scores these are"
        raise UserError(Problem(OPTION, what, "evaluate the adapter again"))
    if below(record, "adapter").get("sha256") != sha256_of(adapter):
        what = f"{path} has the scores of another adapter than {adapter}"
        raise UserError(Problem(OPTION, what, _FIX))
    return Scores(read_figures(path), [*named_files(below(record, "data"), "data_paths")])


def _figures_path(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(Problem(OPTION, f"{place} does not exist", _FIX))
    found = sorted(path for folder in (place, place / "results") for path in folder.glob(f"*{FIGURES_SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(str(path.relative_to(place)) for path in found[:4])
        raise UserError(Problem(OPTION, f"{place} has several figures: {several}", f"name one: {OPTION} {found[0]}"))
    raise UserError(Problem(OPTION, f"{place} has no figures of an evaluation (*{FIGURES_SUFFIX})", _FIX))


def named_files(data: Mapping[str, object], key: str) -> list[tuple[str, str]]:
    """Return the name, or the name on the hub, and the SHA-256 of the data files at a key of a provenance."""
    return [
        (str(file.get("source") or Path(str(file.get("path"))).name), str(file.get("sha256")))
        for file in entries(data, key)
    ]


def training_record(adapter: str | Path, checksum: str) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """Return the provenance and the summary of the training beside an adapter; both {} if they are of another one.

    checksum: that of the base.
    """
    path = Path(adapter)
    provenance, summary = (_object(path.with_name(name)) for name in (PROVENANCE_NAME, SUMMARY_NAME))
    if below(provenance, "base").get("checksum") != checksum:
        return {}, {}
    own = {path.name, path.with_suffix(".nemo").name}  # the copy in .safetensors is of the same training
    return provenance, summary if Path(str(summary.get("adapter_path"))).name in own else {}


def _object(path: Path) -> Mapping[str, object]:
    value = load_json(path) if path.is_file() else None
    return value if isinstance(value, dict) else {}
