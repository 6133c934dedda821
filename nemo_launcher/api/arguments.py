# SPDX-License-Identifier: Apache-2.0
"""Arguments of Model's methods: values of any other type raise UserError with the argument's name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from nemo_launcher.api.overrides import kind_of
from nemo_launcher.config.constraints import path_problem
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import HALF_A_PAIR, SURROGATE

if TYPE_CHECKING:
    import torch

Records = str | os.PathLike[str] | Iterable[Mapping[str, object]]
"""The path of a data file, or records with the fields of a template."""


def checked_file(value: object, option: str) -> Path:
    """Return a path. Raises UserError for what cannot name a file; option: the console command's name for it."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    what = path_problem(path) if isinstance(path, str) else f"is {kind_of(value)}, not a path"
    if what is not None:
        raise UserError(Problem(option, what, "give the path of a .nemo file"))
    return Path(str(path))


def is_list_of(values: object, kind: type) -> bool:
    """Return whether values are an iterable of this type; an iterator is not, as it can be read only once."""
    return isinstance(values, Sequence) and all(isinstance(value, kind) for value in values)


def precision_of(dtype: str | int | torch.dtype) -> str:
    """Return the precision of a name or of torch's dtype."""
    from nemo_launcher.config.precision import STORED_PRECISIONS

    return str(STORED_PRECISIONS.get(str(dtype).removeprefix("torch."), dtype))


def settings_of(settings: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return the settings as KEY=VALUE. Raises UserError for anything but a mapping or a list of such texts."""
    if not isinstance(settings, Mapping):
        if isinstance(settings, str) or not is_list_of(settings, str):
            raise UserError(Problem("settings", f"is {kind_of(settings)}", "settings={'data.add_bos': True}"))
        return list(settings)
    return [f"{key}={'null' if value is None else value}" for key, value in settings.items()]


def checked_batch_size(batch_size: int) -> int:
    """Return a batch size. Raises UserError unless it is a whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(Problem("batch_size", f"{batch_size!r} is not a whole number of at least 1", "batch_size=16"))
    return batch_size


def are_texts(prompts: object) -> TypeGuard[Sequence[str]]:
    """Return whether prompts are texts.

    Raises UserError for a single text, which may be a prompt or a file, for none, and for invalid characters.
    """
    if isinstance(prompts, str):
        fix = "pass a list, generate(['...']), or a data file, generate(Path('questions.jsonl'))"
        raise UserError(Problem("prompts", "is one text", fix))
    if not isinstance(prompts, Sequence) or not is_list_of(prompts, str):
        return False
    problems = [
        Problem(f"prompts[{place}]", f"has {HALF_A_PAIR}", "decode the text as UTF-8")
        for place, prompt in enumerate(prompts)
        if SURROGATE.search(prompt)
    ]
    if problems or not prompts:
        raise UserError(problems or Problem("prompts", "are empty", "pass at least one text"))
    return True


def checked_records(records: Any) -> Path | list[Mapping[str, object]]:
    """Return a data file's path, or the records as a list. Raises UserError unless all of them are dictionaries."""
    if isinstance(records, str | os.PathLike):
        return Path(records)
    if not isinstance(records, Iterable):
        raise UserError(Problem("records", f"is {kind_of(records)}", "pass dictionaries, or the path of a data file"))
    found = list(records)
    wrong = [place for place, record in enumerate(found) if not isinstance(record, Mapping)]
    if wrong or not found:
        what = f"[{wrong[0]}] is {type(found[wrong[0]]).__name__}, not a dictionary" if wrong else " is empty"
        raise UserError(Problem("records", what.strip(), "pass dictionaries, such as DataFrame.to_dict('records')"))
    return found
