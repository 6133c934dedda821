# SPDX-License-Identifier: Apache-2.0
"""SQuAD v1.1: from the two published JSON files to the prompt data of the squad task.

Searched are the output folder, `<source_dir>/prompt_data/v1.1` and `<source_dir>`, for train-v1.1.json and
dev-v1.1.json or for train.json and dev.json: any data in the SQuAD format. When they are nowhere, the published files
are downloaded into the output folder and kept only if their SHA-256 is the known one.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypedDict

from nemo_launcher.config import squad_files
from nemo_launcher.config.squad_files import SQUAD_FILES
from nemo_launcher.data.jsonl import read_records
from nemo_launcher.data.squad_download import OFFICIAL_SHA256, download_sources, is_official, manual_advice
from nemo_launcher.data.squad_format import Question, read_squad
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.files.foreign import load_json

TASKNAME = "squad"
MANIFEST_NAME = "squad_manifest.json"
"""Beside the output: the SHA-256 of the sources, and of each output its SHA-256, size and number of questions."""

_SOURCE_NAMES = (("train-v1.1.json", "dev-v1.1.json"), ("train.json", "dev.json"))

PathLike = str | os.PathLike[str]


def find_sources(source_dir: PathLike, output_dir: PathLike) -> tuple[Path, Path] | None:
    """Return the paths of the train and the dev file, both of one folder, or None when no folder holds both."""
    for folder in _search_folders(source_dir, output_dir):
        for names in _SOURCE_NAMES:
            train, dev = (folder / name for name in names)
            if train.is_file() and dev.is_file():
                return train, dev
    return None


class _Written(TypedDict):
    """A prepared file, in the manifest."""

    sha256: str
    """Of its content."""
    bytes: int
    """Its size."""
    questions: int
    """Its lines."""


class _Manifest(TypedDict):
    """What a folder was prepared from, and what was written."""

    sources: dict[str, str]
    """SHA-256 of the original files, by part."""
    outputs: dict[str, _Written]
    """The prepared files, by name."""


def is_prepared(source_dir: PathLike, output_dir: PathLike) -> bool:
    """Return whether the output is there and, when sources are found, was made from exactly them."""
    folder = Path(output_dir)
    if not all((folder / name).is_file() for name in SQUAD_FILES):
        return False
    manifest = _read_manifest(folder)
    sources = find_sources(source_dir, output_dir)
    if manifest is None:
        return sources is None  # prepared by hand or by another tool: nothing to compare with
    whole = all((folder / name).stat().st_size == manifest["outputs"][name]["bytes"] for name in SQUAD_FILES)
    return whole and (sources is None or manifest["sources"] == _digests(sources))


def prepare(
    source_dir: PathLike, output_dir: PathLike, *, download: bool, report: Callable[[str], None] = print
) -> dict[str, int]:
    """Write the four prompt data files and return the number of questions in each.

    The files appear together or, as far as a file system allows, not at all; prepared already, they stay untouched.
    A file of the same name that this function did not write is kept beside it as `<name>.bak`.
    Raises UserError: no sources and no way to download them, or sources that are not in the SQuAD format.
    """
    folder = Path(output_dir)
    if is_prepared(source_dir, output_dir):
        report(f"SQuAD is prepared already in {folder}")
        return _counts(folder)
    sources = find_sources(source_dir, output_dir) or _fetch_sources(source_dir, folder, download, report)
    report(f"Preparing SQuAD from {sources[0]} and {sources[1].name}")
    digests = _digests(sources)
    train, dev = _read_both(sources, report)
    if _digests(sources) != digests:
        what = "changed while it was read"
        raise UserError(Problem(f"{sources[0]} or {sources[1].name}", what, "start again when it is complete"))
    rows: dict[str, Iterable[dict[str, object]]] = {
        squad_files.TRAIN: (_example(question) for question in train),
        squad_files.VALIDATION: (_example(question) for question in dev),
        squad_files.TEST: (_prompt(question) for question in dev),
        squad_files.GROUND_TRUTH: (_ground_truth(question) for question in dev),
    }
    return _write_outputs(folder, rows, digests, report)


def _search_folders(source_dir: PathLike, output_dir: PathLike) -> list[Path]:
    source = Path(source_dir)
    return list(dict.fromkeys([Path(output_dir), source / "prompt_data" / "v1.1", source]))


def _fetch_sources(
    source_dir: PathLike, folder: Path, download: bool, report: Callable[[str], None]
) -> tuple[Path, Path]:
    lone = list(_lone_sources(source_dir, folder))
    if lone:
        raise UserError(lone)
    if not download:
        searched = ", ".join(str(path) for path in _search_folders(source_dir, folder))
        what = f"no SQuAD files: {' and '.join(OFFICIAL_SHA256)} are in none of {searched}"
        raise UserError(Problem(str(folder), what, f"set download: True, or {manual_advice(folder)}"))
    return download_sources(folder, report)


def _lone_sources(source_dir: PathLike, folder: Path) -> Iterator[Problem]:
    """Yield a problem for each source of the user's without its other half, which a download would silently pass by."""
    for searched in _search_folders(source_dir, folder):
        for names in _SOURCE_NAMES:
            for name, other in (names, names[::-1]):
                path = searched / name
                interrupted_download = searched == folder and is_official(path)
                if path.is_file() and not interrupted_download:
                    yield Problem(str(path), f"{other} is missing beside it", f"put {other} into {searched} too")


def _read_both(sources: tuple[Path, Path], report: Callable[[str], None]) -> list[list[Question]]:
    """Return the questions of train and dev; the problems of both come in one error, what is left out is reported."""
    read: list[list[Question]] = []
    problems: list[Problem] = []
    for path in sources:
        try:
            found = read_squad(path)
        except UserError as error:
            problems += error.problems
            continue
        read.append(found.questions)
        if found.num_unanswerable:
            share = f"{found.num_unanswerable:,} of {found.num_unanswerable + len(found.questions):,}"
            report(f"Left out: {share} questions of {path.name} without an answer")
    if problems:
        raise UserError(problems)
    return read


def _prompt(question: Question) -> dict[str, object]:
    return {"taskname": TASKNAME, "context": question.context, "question": question.question}


def _example(question: Question) -> dict[str, object]:
    return {**_prompt(question), "answer": question.answers[0]}


def _ground_truth(question: Question) -> dict[str, object]:
    return {**_prompt(question), "answer": list(question.answers), "id": question.id}


def _write_outputs(
    folder: Path,
    rows: dict[str, Iterable[dict[str, object]]],
    sources: dict[str, str],
    report: Callable[[str], None],
) -> dict[str, int]:
    """Write everything under temporary names, then rename: the outputs first, the manifest last."""
    counts: dict[str, int] = {}
    with ExitStack() as renames:  # leaves in reverse order, so what is entered first gets its name last
        manifest_file = renames.enter_context(atomic_path(folder / MANIFEST_NAME))
        outputs: dict[str, _Written] = {}
        for name in SQUAD_FILES:
            temporary = renames.enter_context(atomic_path(folder / name))
            counts[name] = _write_rows(temporary, rows[name])
            outputs[name] = {
                "sha256": sha256_of(temporary),
                "bytes": temporary.stat().st_size,
                "questions": counts[name],
            }
        manifest_file.write_text(json.dumps({"sources": sources, "outputs": outputs}, indent=2), encoding="utf-8")
        _keep_foreign(folder, outputs, report)
        # From here on an interruption leaves no manifest, and the next call prepares everything again.
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name, count in counts.items():
        report(f"{folder / name}: {count:,} questions")
    return counts


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())  # a full disk shows here, before the first file gets its name
    return count


def _keep_foreign(folder: Path, new: dict[str, _Written], report: Callable[[str], None]) -> None:
    """Rename what was not written by `prepare`, or was edited since, to `<name>.bak`."""
    manifest = _read_manifest(folder)
    for name in SQUAD_FILES:
        path = folder / name
        ours = {new[name]["sha256"], manifest["outputs"][name]["sha256"] if manifest else None}
        if path.is_file() and sha256_of(path) not in ours:
            kept = next(kept for kept in _names_to_keep(folder, name) if not os.path.lexists(kept))
            os.replace(path, kept)
            report(f"{path} came from elsewhere: kept as {kept.name}")


def _names_to_keep(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.bak"
    yield from (folder / f"{name}.bak{number}" for number in itertools.count(2))


def _digests(sources: tuple[Path, Path]) -> dict[str, str]:
    return {part: sha256_of(path) for part, path in zip(("train", "dev"), sources, strict=True)}


def _read_manifest(folder: Path) -> _Manifest | None:
    """Return the manifest, or None when there is none that can be used."""
    try:
        manifest: _Manifest = load_json(folder / MANIFEST_NAME)
        counts = [(manifest["outputs"][name]["bytes"], manifest["outputs"][name]["questions"]) for name in SQUAD_FILES]
        digests = [manifest["outputs"][name]["sha256"] for name in SQUAD_FILES]
        whole = all(type(value) is int and value >= 0 for pair in counts for value in pair)
        return (
            manifest if whole and all(isinstance(digest, str) for digest in digests) and manifest["sources"] else None
        )
    except (OSError, UserError, TypeError, KeyError):
        return None


def _counts(folder: Path) -> dict[str, int]:
    manifest = _read_manifest(folder)
    if manifest is not None:
        return {name: manifest["outputs"][name]["questions"] for name in SQUAD_FILES}
    return {name: sum(1 for _ in read_records(folder / name)) for name in SQUAD_FILES}
