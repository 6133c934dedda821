# SPDX-License-Identifier: Apache-2.0
"""The only reader of foreign files, which this process did not write: names and JSON, parsed within limits.

An archive, checkpoint, tokenizer or configuration may come from anyone. Names from such a file are joined to a folder
only by `inside`, text is parsed only by `parse_json` or `parse_yaml` (foreign_yaml.py), and `reading` turns the
exceptions of libraries into messages. Nothing is executed, and time and memory are bounded for every input.
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
from typing import Any, TypeVar

from nemo_launcher.errors import Problem, UserError, environment_message

T = TypeVar("T")

MAX_NAME_BYTES = 255
"""Maximum length of one part of a member's name, as in common file systems."""
MAX_TEXT_BYTES = 64 * 2**20
"""Maximum size of a JSON file; a tokenizer.json with 256,000 tokens has 35 MB."""
MAX_DEPTH = 50
"""Maximum nesting of lists and mappings."""
MAX_JSON_VALUES = 8_000_000
"""Maximum number of values; a tokenizer.json with 256,000 tokens has about 1,300,000. A value takes up to 64 bytes."""
MAX_DIGITS = 300
"""Maximum number of digits of a whole number, near the limit of a float."""
COPY = "correct or copy it again"
"""The fix for a file with unusable content."""
SURROGATE = re.compile("[\ud800-\udfff]")
HALF_A_PAIR = "half of a surrogate pair (\\ud800 to \\udfff), which is not a character"


# --- names --------------------------------------------------------------------------------------------------------


def name_problem(name: str) -> str | None:
    """Return why a member's name cannot be joined to a folder; None when it can.

    Absolute names, `..`, empty parts, control characters and parts longer than MAX_NAME_BYTES are refused.
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
    """Return what is wrong with an archive's member names: unusable names, and pairs that could name the same file.

    On some file systems, names that differ only in case or Unicode form name the same file.
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
            what = "is in the archive twice" if twin == name else f"differs from {twin!r} only by case or Unicode"
            problems.append(Problem(f"{source}: {name[:200]!r}", f"{what}; the archive is refused"))
        seen[folded] = name
    return problems


def inside(folder: Path, name: str, source: str) -> Path:
    """Return `folder/name`, checked to be inside `folder` with links resolved. The only way to join a foreign name.

    source: the file that the name comes from, for the message. Raises UserError for a name that leads outside.
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
    """Return the problem of a path that is not a regular file; None when it may be opened.

    Opening a pipe would block, and reading a device may never end.
    """
    if path.is_dir():
        return Problem(str(path), "is a folder, not a file", "name a file")
    if not path.exists():
        return Problem(str(path), "no such file", "check the path")
    if not path.is_file():
        return Problem(str(path), "is a device or pipe, not a regular file", "name a regular file")
    return None


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a regular file. Raises UserError for any other kind of path and beyond `limit` bytes."""
    source, problem = str(path), kind_problem(path)
    if problem is not None:
        raise UserError(problem)
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(Problem(source, f"has more than {limit:,} bytes, the limit for a file of this kind"))
    return content


def load_json(path: Path) -> Any:
    """Return a JSON file as plain values. Raises UserError as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path), str(path))


def parse_json(
    text: bytes | str, source: str, *, line: int | None = None, unique_keys: bool = True, fix: str = COPY
) -> Any:
    """Return JSON as plain values.

    line: the line of the text in a JSONL file. unique_keys: refuse objects with a repeated key.
    Raises UserError for text that is not UTF-8 or not JSON (NaN and Infinity included), nesting beyond MAX_DEPTH, whole
    numbers of more than MAX_DIGITS digits, numbers beyond a float, unpaired surrogates, which UTF-8 cannot encode, and
    more than about MAX_JSON_VALUES values.
    """
    where = source if line is None else f"{source}:{line}"
    decoded = decode(text, where)
    if len(decoded) > MAX_JSON_VALUES and sum(map(decoded.count, "[{,")) > MAX_JSON_VALUES:
        raise UserError(Problem(where, f"has more than {MAX_JSON_VALUES:,} values, the limit for a file of this kind"))
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
    """Return an exception's message on one line of at most 300 characters, or its type when the message is empty."""
    text = " ".join(str(error).split())
    return (text[:297] + "...") if len(text) > 300 else (text or type(error).__name__)


@contextlib.contextmanager
def reading(source: str | os.PathLike[str], fix: str = "copy it again") -> Iterator[None]:
    """Turn any exception that a library raises on a foreign file into a UserError that names the file.

    UserError, errors of the disk, KeyboardInterrupt and SystemExit pass unchanged. Libraries written in Rust raise
    PanicException, which is not a subclass of Exception.
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


def reading_each(items: Iterator[T], source: str | os.PathLike[str], fix: str = "copy it again") -> Iterator[T]:
    """Yield the items of an iterator that reads a foreign file, with the errors of `reading`."""
    done = object()
    while True:
        with reading(source, fix):
            item = next(items, done)
        if item is done:
            return
        yield item  # type: ignore[misc]


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
    """Suppress what libraries written in Rust print on standard error when they panic.

    Without a failure, the captured text is printed at the end. Not thread-safe: standard error belongs to the process.
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


# --- parsing ------------------------------------------------------------------------------------------------------


def decode(text: bytes | str, source: str) -> str:
    """Return UTF-8 bytes as text. Raises UserError for invalid UTF-8."""
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(Problem(source, f"is not UTF-8 (byte {error.start + 1})", "save the file as UTF-8")) from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number with {len(digits):,} digits")
    return int(digits)


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice in one object")
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
    """Raise ValueError when a parsed value is nested too deeply or has an unpaired surrogate."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels")
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
