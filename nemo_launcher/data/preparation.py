# SPDX-License-Identifier: Apache-2.0
"""From a dataset's original files to its four files of prompt data, which appear together or not at all.

What differs between datasets is in a DatasetBuilder each (config/datasets.py names them). Imports nothing heavy: the
launcher prepares data.
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
from nemo_launcher.data.jsonl import read_records
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


class DatasetBuilder(abc.ABC):
    """Prepares one dataset."""

    dataset: ClassVar[Dataset]
    """Its entry in config/datasets.py."""

    @abc.abstractmethod
    def find(self, source_dir: Path, output_dir: Path) -> Sources | None:
        """Return the original files; None when they are not all there."""

    @abc.abstractmethod
    def fetch(self, source_dir: Path, output_dir: Path, *, download: bool, report: Report) -> Sources:
        """Return the original files after a download, where `find` found none.

        Raises UserError: no download is allowed or possible, or only some of the files are there.
        """

    @abc.abstractmethod
    def read(self, sources: Sources, report: Report) -> Rows:
        """Return the records of each file of the dataset. Raises UserError with all that is wrong in the sources."""

    def is_prepared(self, source_dir: PathLike, output_dir: PathLike) -> bool:
        """Return whether the output is there and, when sources are found, was made from exactly them."""
        folder = Path(output_dir)
        if not all((folder / name).is_file() for name in self.dataset.files):
            return False
        manifest = _read_manifest(self.dataset, folder)
        sources = self.find(Path(source_dir), folder)
        if manifest is None:
            return sources is None  # prepared by hand or by another tool: nothing to compare with
        sizes = {name: manifest["outputs"][name]["bytes"] for name in self.dataset.files}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        return whole and (sources is None or manifest["sources"] == _digests(sources))

    def prepare(
        self, source_dir: PathLike, output_dir: PathLike, *, download: bool, report: Report = print
    ) -> dict[str, int]:
        """Write the prompt data files and return the number of records in each.

        The files appear together or, as far as a file system allows, not at all; prepared already, they stay untouched.
        A file of the same name that this function did not write is kept beside it as `<name>.bak`.
        Raises UserError: no sources and no way to download them, or sources that cannot be used.
        """
        folder = Path(output_dir)
        if self.is_prepared(source_dir, folder):
            report(f"{self.dataset.title} is prepared already in {folder}")
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
    """Return what prepares a dataset."""
    module, _, name = dataset.builder.partition(":")
    builder: DatasetBuilder = getattr(importlib.import_module(module), name)()
    return builder


def manifest_name(dataset: Dataset) -> str:
    """The file beside the output with the SHA-256 of the sources, and the SHA-256, size and records of each output."""
    return f"{dataset.name}_manifest.json"


def _write_outputs(
    dataset: Dataset, folder: Path, rows: Rows, sources: dict[str, str], report: Report
) -> dict[str, int]:
    """Write everything under temporary names, then rename: the outputs first, the manifest last."""
    counts: dict[str, int] = {}
    manifest = folder / manifest_name(dataset)
    with ExitStack() as renames:  # leaves in reverse order, so what is entered first gets its name last
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
        _keep_foreign(dataset, folder, outputs, report)
        # From here on an interruption leaves no manifest, and the next call prepares everything again.
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
        os.fsync(file.fileno())  # a full disk shows here, before the first file gets its name
    return count


def _keep_foreign(dataset: Dataset, folder: Path, new: dict[str, _Written], report: Report) -> None:
    """Rename what was not written by `prepare`, or was edited since, to `<name>.bak`."""
    manifest = _read_manifest(dataset, folder)
    for name in dataset.files:
        path = folder / name
        ours = {new[name]["sha256"], manifest["outputs"][name]["sha256"] if manifest else None}
        if path.is_file() and sha256_of(path) not in ours:
            kept = next(kept for kept in _names_to_keep(folder, name) if not os.path.lexists(kept))
            os.replace(path, kept)
            report(f"{path} came from elsewhere: kept as {kept.name}")


def _names_to_keep(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.bak"
    yield from (folder / f"{name}.bak{number}" for number in itertools.count(2))


def _digests(sources: Sources) -> dict[str, str]:
    return {part: sha256_of(path) for part, path in sources.items()}


def _read_manifest(dataset: Dataset, folder: Path) -> _Manifest | None:
    """Return the manifest, or None when there is none that can be used."""
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
