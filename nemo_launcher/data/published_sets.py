# SPDX-License-Identifier: Apache-2.0
"""Preparation of published datasets whose original files the user provides; they are never downloaded.

The forms are those of SuperGLUE (BoolQ, RTE and MultiRC as JSON Lines), GLUE (SST-2 and RTE as tab-separated text
without quotes) and the CSV files of CNN/DailyMail 3.0.0. Their test sets have no labels, or are not used: as with
SQuAD, validation and test data come from the development set.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.data.jsonl import MAX_PROBLEMS, bounded_lines
from nemo_launcher.data.preparation import DatasetBuilder, Report, Rows, Sources
from nemo_launcher.data.records import read_records
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import decode

Record = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its answer."""

    prompt: dict[str, object]
    """The fields of the prompt."""
    answer: str
    """The right answer."""


class MalformedError(Exception):
    """A record does not have the published form; the message says what is wrong."""


class PublishedBuilder(DatasetBuilder):
    """Prepares one dataset from a file for training and one for development."""

    folders: ClassVar[tuple[str, ...]]
    """The names of the published folder."""
    train_files: ClassVar[tuple[str, ...]]
    """The names of the training file, by preference."""
    dev_files: ClassVar[tuple[str, ...]]
    """The names of the development file, by preference."""
    origin: ClassVar[str]
    """Where the files are published."""

    @abc.abstractmethod
    def questions(self, record: Record) -> Iterator[Question]:
        """Yield the questions of a record of the original files. Raises MalformedError."""

    def find(self, source_dir: Path, output_dir: Path) -> Sources | None:
        """Return the training and development files of the first folder with both, or None."""
        for folder in self._searched(source_dir, output_dir):
            train, dev = (_first(folder, names) for names in (self.train_files, self.dev_files))
            if train is not None and dev is not None:
                return {"train": train, "dev": dev}
        return None

    def fetch(self, source_dir: Path, output_dir: Path, *, download: bool, report: Report) -> Sources:
        """Raise UserError: the files are not downloaded."""
        folders = self._searched(source_dir, output_dir)
        searched = ", ".join(map(str, folders))
        names = " and ".join(" or ".join(names) for names in (self.train_files, self.dev_files))
        what = f"no {self.dataset.title} files: {names} were not found in {searched}"
        fix = f"get them from {self.origin} and put both into {folders[-1]}"
        raise UserError(Problem(str(output_dir), what, fix))

    def read(self, sources: Sources, report: Report) -> Rows:
        """Return the records: training data from train, all other files from dev."""
        problems: list[Problem] = []
        train, dev = (self._questions(path, problems) for path in sources.values())
        if problems:
            raise UserError(problems)
        name = self.dataset.name
        numbered = [({"taskname": name, **question.prompt}, question.answer) for question in dev]
        return {
            self.dataset.train: [
                {"taskname": name, **question.prompt, "answer": question.answer} for question in train
            ],
            self.dataset.validation: [prompt | {"answer": answer} for prompt, answer in numbered],
            self.dataset.test: [prompt for prompt, _ in numbered],
            self.dataset.ground_truth: [
                prompt | {"answer": [answer], "id": str(number)} for number, (prompt, answer) in enumerate(numbered)
            ],
        }

    def _searched(self, source_dir: Path, output_dir: Path) -> list[Path]:
        is_own = source_dir.name in self.folders
        folders = [source_dir] if is_own else [source_dir / name for name in self.folders]
        return list(dict.fromkeys([output_dir, *folders]))

    def _questions(self, path: Path, problems: list[Problem]) -> list[Question]:
        """Return the questions of a file, and add its problems to `problems`."""
        found: list[Question] = []
        wrong: list[Problem] = []
        try:
            for place, record in _plain_table(path) if path.suffix == ".tsv" else read_records(path):
                try:
                    found += self.questions(record)
                except MalformedError as error:
                    wrong.append(Problem(place, str(error), f"use the published file: {self.origin}"))
                if len(wrong) >= MAX_PROBLEMS:
                    break
        except UserError as error:
            wrong += error.problems
        if not found and not wrong:
            wrong.append(Problem(str(path), "has no records", f"use the published file: {self.origin}"))
        problems += wrong
        return found


class BoolQBuilder(PublishedBuilder):
    """BoolQ (arXiv 1905.10044): `question`, `passage`, and `label` (SuperGLUE) or `answer` (the original files)."""

    dataset = DATASETS["boolq"]
    folders = ("boolq", "BoolQ")
    train_files, dev_files = ("train.jsonl",), ("val.jsonl", "dev.jsonl")
    origin = "https://super.gluebenchmark.com/tasks (BoolQ)"

    def questions(self, record: Record) -> Iterator[Question]:
        """Yield the question of a record."""
        label = record.get("label", record.get("answer"))
        if not isinstance(label, bool):
            raise MalformedError("has no 'label' or 'answer' that is true or false")
        yield Question(_texts(record, "passage", "question"), "yes" if label else "no")


class RTEBuilder(PublishedBuilder):
    """RTE: `premise` and `hypothesis` (SuperGLUE), or `sentence1` and `sentence2` (GLUE)."""

    dataset = DATASETS["rte"]
    folders = ("rte", "RTE")
    train_files, dev_files = ("train.jsonl", "train.tsv"), ("val.jsonl", "dev.tsv")
    origin = "https://super.gluebenchmark.com/tasks (RTE) or https://gluebenchmark.com/tasks (RTE)"

    def questions(self, record: Record) -> Iterator[Question]:
        """Yield the pair of a record."""
        names = ("sentence1", "sentence2") if "sentence1" in record else ("premise", "hypothesis")
        premise, hypothesis = _texts(record, *names).values()
        answer = _label(record, {"entailment": "yes", "not_entailment": "no"})
        yield Question({"premise": premise, "hypothesis": hypothesis}, answer)


class SST2Builder(PublishedBuilder):
    """SST-2 of GLUE: `sentence`, and `label` 0 or 1."""

    dataset = DATASETS["sst2"]
    folders = ("sst2", "SST-2")
    train_files, dev_files = ("train.tsv",), ("dev.tsv",)
    origin = "https://gluebenchmark.com/tasks (SST-2)"

    def questions(self, record: Record) -> Iterator[Question]:
        """Yield the sentence of a record."""
        yield Question(_texts(record, "sentence"), _label(record, {"0": "negative", "1": "positive"}))


class CNNDailyMailBuilder(PublishedBuilder):
    """CNN/DailyMail 3.0.0 (arXiv 1704.04368): `article` and `highlights`, in CSV files."""

    dataset = DATASETS["cnn_dailymail"]
    folders = ("cnn_dailymail",)
    train_files, dev_files = ("train.csv",), ("validation.csv", "val.csv")
    origin = "the CSV files of CNN/DailyMail 3.0.0"

    def questions(self, record: Record) -> Iterator[Question]:
        """Yield the article of a record; a summary of several lines becomes one."""
        article, highlights = _texts(record, "article", "highlights").values()
        yield Question({"article": article}, " ".join(str(highlights).split()))


class MultiRCBuilder(PublishedBuilder):
    """MultiRC of SuperGLUE: each candidate answer to a question about a passage is right or wrong."""

    dataset = DATASETS["multirc"]
    folders = ("multirc", "MultiRC")
    train_files, dev_files = ("train.jsonl",), ("val.jsonl",)
    origin = "https://super.gluebenchmark.com/tasks (MultiRC)"

    def questions(self, record: Record) -> Iterator[Question]:
        """Yield a question for each candidate answer of a passage."""
        passage = record.get("passage")
        if not isinstance(passage, dict):
            raise MalformedError("has no 'passage' with a text and questions")
        text = _texts(passage, "text")["text"]
        for question in _entries(passage, "questions"):
            asked = _texts(question, "question")["question"]
            for candidate in _entries(question, "answers"):
                prompt = {"passage": text, "question": asked, "candidate": _texts(candidate, "text")["text"]}
                yield Question(prompt, _label(candidate, {"0": "no", "1": "yes"}))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _plain_table(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the records of a tab-separated file in which quotes are text, as in GLUE."""
    names: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file, str(path)), start=1):
            place = f"{path}:{number}"
            values = decode(line, place).rstrip("\r\n").split("\t")
            if not names:
                names = values
            elif len(values) != len(names):
                what = f"has {len(values)} values, but the header has {len(names)}"
                raise UserError(Problem(place, what, "use the published file"))
            else:
                yield place, dict(zip(names, values, strict=True))


def _texts(record: Record, *names: str) -> dict[str, object]:
    """Return fields that must be texts with content. Raises MalformedError."""
    for name in names:
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise MalformedError(f"has no text in {name!r}")
    return {name: str(record[name]).strip() for name in names}


def _label(record: Record, answers: Mapping[str, str]) -> str:
    """Return the answer that a label stands for. Raises MalformedError."""
    found = str(record.get("label"))
    if found not in answers:
        raise MalformedError(f"has the label {found[:40]!r}, which is none of {', '.join(answers)}")
    return answers[found]


def _entries(record: Record, name: str) -> list[Record]:
    """Return a field that must be a list of objects. Raises MalformedError."""
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise MalformedError(f"has no list of objects in {name!r}")
    return list(value)
