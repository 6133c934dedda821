# SPDX-License-Identifier: Apache-2.0
"""Output of a verb's results: to standard output as they arrive, or to a file that is written completely or not at all.

The answers so far of a long `generate --output` are kept beside the output, and the same command resumes from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nemo_launcher.data.jsonl import MAX_LINE_BYTES, json_line
from nemo_launcher.errors import Problem, UserError, WriteError
from nemo_launcher.evaluation.file_names import PARTIAL_SUFFIX
from nemo_launcher.evaluation.kept_answers import TOKENS, KeptAnswers, json_object
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.locks import folder_lock, place_of_file
from nemo_launcher.runtime.bars import above_bars

OUR_KEYS = ({"prediction", "token_ids"}, {"nll_sum", "nll_mean", "answer_tokens"})
"""Each JSON line that a verb writes has all keys of one set."""

_FIX = "choose another file, or remove this one first"

Answer = Mapping[str, object]
"""A record or prompt with `prediction` and `token_ids`, or the score of a record."""


class Results(Protocol):
    """A sink for a verb's results; as a context manager it reports what is kept after an interruption."""

    def __enter__(self) -> Results: ...
    def __exit__(self, *error: object) -> None: ...

    def begin(self, key: str) -> Mapping[int, list[int]]:
        """Return the tokens of existing answers by index. key: hash of everything that determines the answers."""

    def take(self, place: int, answer: Answer) -> None:
        """Accept one answer; answers may arrive in any order."""

    def end(self, answers: Iterable[Answer]) -> None:
        """Accept all answers, in order, including those already passed to `take`."""


class Printed:
    """Results on standard output, in order, each printed as soon as it and all before it are ready."""

    def __init__(self, line_of: Callable[[Answer], str]) -> None:
        if sys.stdout is None:
            raise UserError(Problem("standard output", "is closed", "name a file: --output FILE"))
        self._line_of, self._next, self._waiting = line_of, 0, dict[int, str]()

    def __enter__(self) -> Printed:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, key: str) -> Mapping[int, list[int]]:
        return {}

    def take(self, place: int, answer: Answer) -> None:
        self._waiting[place] = self._line_of(answer)
        while self._next in self._waiting:
            self._print(self._waiting.pop(self._next))
            self._next += 1

    def end(self, answers: Iterable[Answer]) -> None:
        for place, answer in enumerate(answers):
            if place >= self._next:
                self._print(self._line_of(answer))
                self._next += 1

    @staticmethod
    def _print(line: str) -> None:
        try:
            with above_bars():
                print(line, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise WriteError(error.errno, error.strerror, "standard output") from error


class Written:
    """Results in a file that appears only when complete; until then `generate` keeps answers in `<file>.partial`.

    like: the files that the results come from; the output is no more accessible to others than they are. As a context
    manager it holds the output's lock, and raises UserError when another process does.
    """

    def __init__(self, output: str, line_of: Callable[[Answer], str], like: Sequence[str] = ()) -> None:
        self.output = Path(output)
        self.kept = KeptAnswers(Path(output + PARTIAL_SUFFIX), "remove it, or choose another --output", TOKENS)
        self._line_of, self._like = line_of, like
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Written:
        self._held.enter_context(folder_lock(*place_of_file(self.output)))
        return self

    def __exit__(self, *error: object) -> None:
        self.kept.close()
        self._held.close()
        if self.kept.count:
            kept = f"{self.kept.count:,} answers are kept in {self.kept.path}; the same command resumes from them"
            print(kept, file=sys.stderr)

    def begin(self, key: str) -> Mapping[int, list[int]]:
        known = self.kept.begin(key)
        if known:
            print(f"resuming from {len(known):,} answers in {self.kept.path}", file=sys.stderr)
        return known

    def take(self, place: int, answer: Answer) -> None:
        ids = answer["token_ids"]
        assert isinstance(ids, list)
        self.kept.take(place, ids, prediction=str(answer["prediction"]))

    def end(self, answers: Iterable[Answer]) -> None:
        with atomic_path(self.output, like=self._like) as temporary, temporary.open("w", encoding="utf-8") as file:
            for answer in answers:
                file.write(self._line_of(answer) + "\n")
        self.kept.discard()


def output_problems(output: str, inputs: Mapping[str, str | None], *, json_lines: bool) -> list[Problem]:
    """Return why results must not be written to `output`: it is a folder, an input, or a foreign file.

    inputs: {option: input file}. json_lines: whether results are JSON rather than plain text.
    """
    path = Path(output).absolute()
    if path.is_dir():
        return [Problem("--output", f"{path} is a folder", "name a file in it")]
    if path.exists() and not path.is_file():
        fix = "name a file, or omit --output and redirect standard output"
        return [Problem("--output", f"{path} is a device or pipe", fix)]
    above = next(folder for folder in path.parents if folder.exists())  # folders below it will be created
    if not above.is_dir():
        return [Problem("--output", f"{above} is a file, not a folder", "name a file in a folder")]
    if not os.access(above, os.W_OK):
        return [Problem("--output", f"{above} cannot be written", "name a file in another folder")]
    for option, name in inputs.items():
        if name is not None and _is_same(path, Path(name)):
            return [Problem("--output", f"{path} is the input of {option}", "name another file")]
        if name is not None and _is_same(Path(f"{path}{PARTIAL_SUFFIX}"), Path(name)):
            what = f"answers would be kept in {path}{PARTIAL_SUFFIX}, which is the input of {option}"
            return [Problem("--output", what, "name another file")]
    if path.exists() and not _is_ours(path, json_lines=json_lines):
        what = f"{path} exists and is not an output of this command"
        return [Problem("--output", what, _FIX)]
    return []


def json_result(answer: Answer) -> str:
    """Return a result as a line of JSON in the encoding of standard output."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json_line(answer) if encoding.startswith("utf") else json.dumps(answer, allow_nan=False)


def _is_same(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return path.samefile(other)
    except OSError:
        return False


def _is_ours(path: Path, *, json_lines: bool) -> bool:
    """Return whether a file may be replaced: it is empty or a JSON output of a verb. Plain text is never replaced."""
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    return not line or (json_lines and any(keys <= json_object(line).keys() for keys in OUR_KEYS))
