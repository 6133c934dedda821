# SPDX-License-Identifier: Apache-2.0
"""Preparation of SQuAD v1.1: the prompt data of the squad task from the two published JSON files.

The output folder, `<source_dir>/prompt_data/v1.1` and `<source_dir>` are searched for train-v1.1.json and dev-v1.1.json
or for train.json and dev.json, which may hold any data in the SQuAD format. If they are not found, the published files
are downloaded into the output folder and kept only if their SHA-256 is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.data.preparation import DatasetBuilder, PathLike, Report, Rows, Sources
from nemo_launcher.data.squad_download import OFFICIAL_SHA256, download_sources, is_official, manual_advice
from nemo_launcher.data.squad_format import Question, read_squad
from nemo_launcher.errors import Problem, UserError

_SOURCE_NAMES = (("train-v1.1.json", "dev-v1.1.json"), ("train.json", "dev.json"))


class SquadBuilder(DatasetBuilder):
    """Prepares SQuAD v1.1, or other data in its format."""

    dataset = DATASETS["squad"]

    def find(self, source_dir: Path, output_dir: Path) -> Sources | None:
        """Return the train and dev files, or None."""
        found = find_sources(source_dir, output_dir)
        return None if found is None else dict(zip(("train", "dev"), found, strict=True))

    def fetch(self, source_dir: Path, output_dir: Path, *, download: bool, report: Report) -> Sources:
        """Download the published files. Raises UserError if that is impossible or only one file of a pair exists."""
        lone = list(_incomplete_sources(source_dir, output_dir))
        if lone:
            raise UserError(lone)
        if not download:
            searched = ", ".join(str(path) for path in _search_folders(source_dir, output_dir))
            what = f"no SQuAD files: {' and '.join(OFFICIAL_SHA256)} were not found in {searched}"
            raise UserError(Problem(str(output_dir), what, f"set download: True, or {manual_advice(output_dir)}"))
        return dict(zip(("train", "dev"), download_sources(output_dir, report), strict=True))

    def read(self, sources: Sources, report: Report) -> Rows:
        """Return the records: training data from train, all other files from dev."""
        train, dev = _read_both(sources, report)
        return {
            self.dataset.train: (_example(question) for question in train),
            self.dataset.validation: (_example(question) for question in dev),
            self.dataset.test: (_prompt(question) for question in dev),
            self.dataset.ground_truth: (_ground_truth(question) for question in dev),
        }


def find_sources(source_dir: PathLike, output_dir: PathLike) -> tuple[Path, Path] | None:
    """Return the paths of the train and dev files in the first folder with both, or None."""
    for folder in _search_folders(source_dir, output_dir):
        for names in _SOURCE_NAMES:
            train, dev = (folder / name for name in names)
            if train.is_file() and dev.is_file():
                return train, dev
    return None


def _search_folders(source_dir: PathLike, output_dir: PathLike) -> list[Path]:
    source = Path(source_dir)
    return list(dict.fromkeys([Path(output_dir), source / "prompt_data" / "v1.1", source]))


def _incomplete_sources(source_dir: Path, folder: Path) -> Iterator[Problem]:
    """Yield a Problem for each of the user's source files without its counterpart, which a download would ignore."""
    for searched in _search_folders(source_dir, folder):
        for names in _SOURCE_NAMES:
            for name, other in (names, names[::-1]):
                path = searched / name
                interrupted_download = searched == folder and is_official(path)
                if path.is_file() and not interrupted_download:
                    yield Problem(str(path), f"{other} is missing in the same folder", f"add {other} to {searched}")


def _read_both(sources: Sources, report: Report) -> list[list[Question]]:
    """Return the questions of train and dev. Raises UserError with the problems of both; reports omitted questions."""
    read: list[list[Question]] = []
    problems: list[Problem] = []
    for path in sources.values():
        try:
            found = read_squad(path)
        except UserError as error:
            problems += error.problems
            continue
        read.append(found.questions)
        if found.num_unanswerable:
            share = f"{found.num_unanswerable:,} of {found.num_unanswerable + len(found.questions):,}"
            report(f"Omitted: {share} questions of {path.name} without an answer")
    if problems:
        raise UserError(problems)
    return read


def _prompt(question: Question) -> dict[str, object]:
    return {"taskname": SquadBuilder.dataset.name, "context": question.context, "question": question.question}


def _example(question: Question) -> dict[str, object]:
    return {**_prompt(question), "answer": question.answers[0]}


def _ground_truth(question: Question) -> dict[str, object]:
    return {**_prompt(question), "answer": list(question.answers), "id": question.id}
