# SPDX-License-Identifier: Apache-2.0
"""Preparation of a dataset: four files of prompt data from its original files, which appear together or not at all.

Each dataset has its own DatasetBuilder (config/datasets.py lists them). Imports nothing heavy: the launcher prepares
data.
"""

from __future__ import annotations

import abc
import importlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, TypedDict

from nemo_launcher.config.datasets import Dataset
from nemo_launcher.data.records import read_records
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.files.foreign import load_json

PathLike = str | os.PathLike[str]
Report = Callable[[str], None]
Sources = dict[str, Path]
"""The original files by part, such as train and dev."""
Rows = Mapping[str, Iterable[dict[str, object]]]
"""The records of each prepared file, by the file's name."""


class _Written(TypedDict):
    """A prepared file in the manifest."""

    sha256: str
    """The SHA-256 of its content."""
    bytes: int
    """Its size."""
    questions: int
    """Its number of lines."""


class _Manifest(TypedDict):
    """The sources and outputs of a prepared folder."""

    sources: dict[str, str]
    """The SHA-256 of the original files, by part."""
    outputs: dict[str, _Written]
    """The prepared files, by name."""


class DatasetBuilder(abc.ABC):
    """Prepares one dataset."""

    dataset: ClassVar[Dataset]
    """Its entry in config/datasets.py."""

    @abc.abstractmethod
    def find(self, source_dir: Path, output_dir: Path) -> Sources | None:
        """Return the original files, or None if some are missing."""

    @abc.abstractmethod
    def fetch(self, source_dir: Path, output_dir: Path, *, download: bool, report: Report) -> Sources:
        """Download and return the original files that `find` did not find.

        Raises UserError if no download is allowed or possible, or if only some of the files exist.
        """

    @abc.abstractmethod
    def read(self, sources: Sources, report: Report) -> Rows:
        """Return the records of each file of the dataset. Raises UserError with all problems in the sources."""

    def is_prepared(self, source_dir: PathLike, output_dir: PathLike) -> bool:
        """Return whether the output exists and, if sources are found, was made from them."""
        folder = Path(output_dir)
        if not all((folder / name).is_file() for name in self.dataset.files):
            return False
        manifest = _read_manifest(self.dataset, folder)
        sources = self.find(Path(source_dir), folder)
        if manifest is None:
            return sources is None  # prepared manually or by another tool
        sizes = {name: manifest["outputs"][name]["bytes"] for name in self.dataset.files}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        return whole and (sources is None or manifest["sources"] == _digests(sources))

    def prepare(
        self, source_dir: PathLike, output_dir: PathLike, *, download: bool, report: Report = print
    ) -> dict[str, int]:
        """Write the prompt data files and return the number of records in each.

        The files appear together or not at all, as far as the file system allows; prepared files stay unchanged. An
        existing file that this function did not write is kept as `<name>.bak`. Raises UserError if there are no sources
        and they cannot be downloaded, or if sources are unusable.
        """
        folder = Path(output_dir)
        if self.is_prepared(source_dir, folder):
            report(f"{self.dataset.title} is already prepared in {folder}")
            return _counts(self.dataset, folder)
        source = Path(source_dir)
        sources = self.find(source, folder) or self.fetch(source, folder, download=download, report=report)
        first, *others = sources.values()
        names = [str(first), *(path.name for path in others)]
        report(f"Preparing {self.dataset.title} from {' and '.join(names)}")
        digests = _digests(sources)
        rows = self.read(sources, report)
        if _digests(sources) != digests:
            what = "changed while it was read"
            raise UserError(Problem(" or ".join(names), what, "start again when it is complete"))
        return _write_outputs(self.dataset, folder, rows, digests, report)


def builder_of(dataset: Dataset) -> DatasetBuilder:
    """Return the builder of a dataset."""
    module, _, name = dataset.builder.partition(":")
    builder: DatasetBuilder = getattr(importlib.import_module(module), name)()
    return builder


def manifest_name(dataset: Dataset) -> str:
    """Return the manifest's file name: SHA-256 of the sources; SHA-256, size and number of records of each output."""
    return f"{dataset.name}_manifest.json"


def _write_outputs(
    dataset: Dataset, folder: Path, rows: Rows, sources: dict[str, str], report: Report
) -> dict[str, int]:
    """Write all files under temporary names, then rename them: first the outputs, last the manifest."""
    counts: dict[str, int] = {}
    manifest = folder / manifest_name(dataset)
    with ExitStack() as renames:  # exits in reverse order, so the first file is renamed last
        manifest_file = renames.enter_context(atomic_path(manifest))
        outputs: dict[str, _Written] = {}
        for name in dataset.files:
            temporary = renames.enter_context(atomic_path(folder / name))
            counts[name] = _write_rows(temporary, rows[name])
            outputs[name] = {
                "sha256": sha256_of(temporary),
                "bytes": temporary.stat().st_size,
                "questions": counts[name],
            }
        manifest_file.write_text(json.dumps({"sources": sources, "outputs": outputs}, indent=2), encoding="utf-8")
        _back_up_foreign(dataset, folder, outputs, report)
        # After an interruption from here on there is no manifest, and the next call prepares everything again.
        manifest.unlink(missing_ok=True)
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
        os.fsync(file.fileno())  # raises an error for a full disk before any file is renamed
    return count


def _back_up_foreign(dataset: Dataset, folder: Path, new: dict[str, _Written], report: Report) -> None:
    """Rename files that `prepare` did not write, or that were edited since, to `<name>.bak`."""
    manifest = _read_manifest(dataset, folder)
    for name in dataset.files:
        path = folder / name
        ours = {new[name]["sha256"], manifest["outputs"][name]["sha256"] if manifest else None}
        if path.is_file() and sha256_of(path) not in ours:
            kept = next(kept for kept in _names_to_keep(folder, name) if not os.path.lexists(kept))
            os.replace(path, kept)
            report(f"{path} was not written by this program: kept as {kept.name}")


def _names_to_keep(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.bak"
    yield from (folder / f"{name}.bak{number}" for number in itertools.count(2))


def _digests(sources: Sources) -> dict[str, str]:
    return {part: sha256_of(path) for part, path in sources.items()}


def _read_manifest(dataset: Dataset, folder: Path) -> _Manifest | None:
    """Return the manifest, or None if there is no valid one."""
    try:
        manifest: _Manifest = load_json(folder / manifest_name(dataset))
        outputs = [manifest["outputs"][name] for name in dataset.files]
        counts = [count for output in outputs for count in (output["bytes"], output["questions"])]
        whole = all(type(count) is int and count >= 0 for count in counts)
        named = all(isinstance(output["sha256"], str) for output in outputs)
        return manifest if whole and named and manifest["sources"] else None
    except (OSError, UserError, TypeError, KeyError):
        return None


def _counts(dataset: Dataset, folder: Path) -> dict[str, int]:
    manifest = _read_manifest(dataset, folder)
    if manifest is not None:
        return {name: manifest["outputs"][name]["questions"] for name in dataset.files}
    return {name: sum(1 for _ in read_records(folder / name)) for name in dataset.files}
