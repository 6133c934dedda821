# SPDX-License-Identifier: Apache-2.0
"""The one door for files that this project did not write in this run: names and JSON, read within limits.

An archive, a checkpoint, a tokenizer or a configuration may come from anybody. What it holds is joined to a folder by
`inside` alone, parsed by `parse_json` or `parse_yaml` (foreign_yaml.py) alone, and what a library raises on it becomes
a message through `reading`. Nothing is executed, and no input decides how much time or memory reading it takes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_launcher.errors import Problem, UserError, environment_message

MAX_NAME_BYTES = 255
"""Of one part of a member's name: what file systems take."""
MAX_TEXT_BYTES = 64 * 2**20
"""Of a YAML or JSON file; a tokenizer.json of 256,000 tokens has 35 MB."""
MAX_DEPTH = 50
"""Of nested lists and mappings."""
MAX_JSON_VALUES = 8_000_000
"""A tokenizer.json of 256,000 tokens has some 1,300,000; a value takes up to 64 bytes of memory."""
MAX_DIGITS = 300
"""Of a whole number: more than the largest float has."""
COPY = "correct or copy it again"
"""What to do about a file whose content is not usable."""
SURROGATE = re.compile("[\ud800-\udfff]")
HALF_A_PAIR = "half of a surrogate pair (\\ud800 to \\udfff), which is no character"


# --- names --------------------------------------------------------------------------------------------------------


def name_problem(name: str) -> str | None:
    """Return why a member's name cannot be joined to a folder; None when it can.

    Refused are absolute names, `..`, empty parts, control characters and parts longer than file systems take.
    """
    if not name or name.startswith("/") or "\\" in name:
        return "is not a relative name"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has control characters"
    parts = name.split("/")
    if ".." in parts:
        return "leads outside the folder"
    if any(part in ("", ".") for part in parts):
        return "has an empty part"
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        return f"has a part of more than {MAX_NAME_BYTES} bytes"
    return None


def name_problems(names: Iterable[str], source: str) -> list[Problem]:
    """Return what is wrong with the member names of one archive: each name by itself, and two that could be one file.

    Names that are equal, or equal but for case or Unicode form, name the same file on some file systems.
    """
    problems = []
    seen: dict[str, str] = {}
    for name in names:
        what = name_problem(name)
        if what is not None:
            problems.append(Problem(f"{source}: {name[:200]!r}", f"{what}; the archive is refused"))
            continue
        folded = unicodedata.normalize("NFKC", name).casefold()
        if folded in seen:
            twin = seen[folded]
            what = "stands in the archive twice" if twin == name else f"differs from {twin!r} by case or Unicode alone"
            problems.append(Problem(f"{source}: {name[:200]!r}", f"{what}; the archive is refused"))
        seen[folded] = name
    return problems


def inside(folder: Path, name: str, source: str) -> Path:
    """Return `folder/name`, proved to lie inside `folder`, links included. The only way to join a foreign name.

    source: the file that the name comes from, for the message. Raises UserError for a name that leads elsewhere.
    """
    what = name_problem(name)
    target = folder / PurePosixPath(name)
    if what is None:
        root = Path(os.path.realpath(folder))
        if not Path(os.path.realpath(target)).is_relative_to(root):
            what = "leads outside the folder"
    if what is not None:
        raise UserError(Problem(f"{source}: {name[:200]!r}", f"{what}; it is refused"))
    return target


# --- text ---------------------------------------------------------------------------------------------------------


def kind_problem(path: Path) -> Problem | None:
    """Return what to tell of a path that is no regular file; None for one that may be opened.

    A pipe would wait for its other end, and a device need not end.
    """
    if path.is_dir():
        return Problem(str(path), "is a folder, not a file", "name a file")
    if not path.exists():
        return Problem(str(path), "no such file", "check the path")
    if not path.is_file():
        return Problem(str(path), "is a device or pipe, not a regular file", "name a regular file")
    return None


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file. Raises UserError: absent, a folder, a device, larger than `limit` bytes."""
    source, problem = str(path), kind_problem(path)
    if problem is not None:
        raise UserError(problem)
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(Problem(source, f"has more than {limit:,} bytes, which no file of its kind needs"))
    return content


def load_json(path: Path) -> Any:
    """Return a JSON file as plain values; raises UserError as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path), str(path))


def parse_json(
    text: bytes | str, source: str, *, line: int | None = None, unique_keys: bool = True, fix: str = COPY
) -> Any:
    """Return JSON as plain values.

    line: where the text stands in `source`, for a file of JSON lines. unique_keys: refuse an object with a key twice.
    Raises UserError: not UTF-8, not JSON (NaN and Infinity included), nesting beyond MAX_DEPTH, whole numbers of more
    than MAX_DIGITS digits, numbers beyond a float, halves of a surrogate pair, which no UTF-8 file can hold, more
    than about MAX_JSON_VALUES values.
    """
    where = source if line is None else f"{source}:{line}"
    decoded = decode(text, where)
    if len(decoded) > MAX_JSON_VALUES and sum(map(decoded.count, "[{,")) > MAX_JSON_VALUES:
        raise UserError(Problem(where, f"holds more than {MAX_JSON_VALUES:,} values, which no file of its kind needs"))
    try:
        value = (_UNIQUE if unique_keys else _ANY_KEYS).decode(decoded)
        surrogates = _ESCAPED_SURROGATE.search(decoded) or (isinstance(text, str) and SURROGATE.search(text))
        if surrogates or decoded.count("[") + decoded.count("{") > MAX_DEPTH:
            _check_tree(value, surrogates=bool(surrogates))
    except json.JSONDecodeError as error:
        where = f"{where}:{error.lineno}:{error.colno}" if line is None else f"{where}:{error.colno}"
        raise UserError(Problem(where, f"not JSON: {error.msg}", fix)) from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise UserError(Problem(where, f"not usable JSON: {what}", fix)) from None
    return value


def first_line(error: BaseException) -> str:
    """Return what an exception says in one line of at most 300 characters; its type when it says nothing."""
    text = " ".join(str(error).split())
    return (text[:297] + "...") if len(text) > 300 else (text or type(error).__name__)


@contextlib.contextmanager
def reading(source: str | os.PathLike[str], fix: str = "copy it again") -> Iterator[None]:
    """Turn whatever a library raises on a foreign file into a UserError that names the file.

    Passed on as they are: UserErrors, a full or unwritable disk, KeyboardInterrupt, SystemExit. Libraries written in
    Rust end in a PanicException, which is no Exception.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, OSError) and environment_message(error) is not None:
            raise
        raise UserError(Problem(str(source), f"cannot be read: {first_line(error)}", fix)) from error


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
    """Keep back what libraries written in Rust print on standard error when they end in a panic.

    What else is printed there comes out at the end. For one thread: standard error is the process's.
    """
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            if not failed:
                kept.seek(0)
                sys.stderr.write(kept.read().decode(errors="replace"))
                sys.stderr.flush()


# --- how they are parsed ------------------------------------------------------------------------------------------


def decode(text: bytes | str, source: str) -> str:
    """Return UTF-8 as text; raises UserError for other bytes."""
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(Problem(source, f"is not UTF-8 (byte {error.start + 1})", "save the file as UTF-8")) from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond what a number can hold")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return values


_NUMBERS: dict[str, Any] = {
    "parse_constant": _no_constant,
    "parse_int": _whole_number,
    "parse_float": _finite_number,
}
_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique, **_NUMBERS)
_ANY_KEYS = json.JSONDecoder(**_NUMBERS)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _check_tree(value: object, *, surrogates: bool) -> None:
    """Raise ValueError where a parsed value is nested too deeply or holds half of a surrogate pair."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        texts = [item for item in level if isinstance(item, str)] if surrogates else []
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                texts += item if surrogates else ()
            elif isinstance(item, list):
                below += item
        for text in texts:
            if SURROGATE.search(text):
                raise ValueError(HALF_A_PAIR)
        level = below
