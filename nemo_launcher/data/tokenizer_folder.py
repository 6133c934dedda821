# SPDX-License-Identifier: Apache-2.0
"""Checks of a Hugging Face tokenizer's folder: JSON within limits, no code, no files elsewhere.

`transformers` runs the module named in an `auto_map` if it is allowed to, or if somebody answers its prompt with yes.
Neither can happen: the folder is checked before transformers reads it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nemo_launcher.checkpoint.hf_architectures import MAX_LABELS
from nemo_launcher.checkpoint.model_config import MAX_SENTINELS
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import name_problem, parse_json, read_bytes
from nemo_launcher.files.values import Section
from nemo_launcher.runtime import ranks

_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
# Keys of tokenizer_config.json that give the number of tokens a class of transformers creates.
_COUNTS = ("extra_ids", "offset", "num_madeup_words", "num_mask_tokens")
_MAX_FOLDERS = 100


def check_folder(folder: Path, source: str) -> None:
    """Check a tokenizer's folder and its subfolders; source: its name in messages.

    An `auto_map` is ignored with a warning if transformers has the tokenizer's class. Raises UserError if it does not,
    and for invalid JSON, JSON that is not an object, files elsewhere, and excessive numbers of tokens.
    """
    for below, name, config in _configs(folder, source):
        where = f"{source}: {below}{name}"
        if not isinstance(config, dict):
            raise UserError(Problem(where, f"is {json_kind(config)}, not an object", "copy it again"))
        if name == "tokenizer_config.json":
            _check_settings(config, where)
        _check_labels(config, where)
        if name in ("tokenizer_config.json", "config.json") and _tokenizer_code(config):
            _check_code(config, _class_name(folder, config, source), where, nested=bool(below))


def _configs(folder: Path, source: str) -> Iterator[tuple[str, str, object]]:
    for count, (path, folders, names) in enumerate(os.walk(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]  # a clone's .git has hundreds
        if count >= _MAX_FOLDERS:
            raise UserError(
                Problem(source, f"holds more than {_MAX_FOLDERS} folders", "give the path of the tokenizer's folder")
            )
        below = os.path.relpath(path, folder)
        below = "" if below == "." else f"{below}/"
        for name in _CONFIGS:
            if name in names:
                content = read_bytes(Path(f"{path}/{name}"))
                yield below, name, parse_json(content, f"{source}: {below}{name}", unique_keys=False)


def _check_settings(config: Mapping[str, object], where: str) -> None:
    problems = []
    for key, value in config.items():
        if key.endswith("_file") and isinstance(value, str) and name_problem(value) is not None:
            what = f"{value!r} is not a file in the tokenizer's folder"
            problems.append(Problem(f"{where}: {key}", what, "remove the key"))
    for key in _COUNTS:
        value = config.get(key)
        if isinstance(value, (int, float)) and not 0 <= value <= MAX_SENTINELS:
            what = f"{value} is not a number of tokens"
            problems.append(Problem(f"{where}: {key}", what, f"write a whole number from 0 to {MAX_SENTINELS}"))
    if not isinstance(config.get("tokenizer_class", ""), (str, type(None))):
        what = f"is {json_kind(config['tokenizer_class'])}, not the name of a class"
        problems.append(Problem(f"{where}: tokenizer_class", what, "write a name such as PreTrainedTokenizerFast"))
    if problems:
        raise UserError(problems)


def _check_labels(config: Mapping[str, object], where: str) -> None:
    labels = config.get("num_labels")
    if isinstance(labels, (int, float)) and not 0 <= labels <= MAX_LABELS:
        raise UserError(Problem(f"{where}: num_labels", f"{labels} is not a number of labels", "remove the key"))


def _tokenizer_code(config: Mapping[str, object]) -> bool:
    """Return whether a configuration refers to code for its tokenizer."""
    code = config.get("auto_map")
    return bool(code) and (not isinstance(code, dict) or "AutoTokenizer" in code)


def _class_name(folder: Path, config: Mapping[str, object], source: str) -> str | None:
    name = config.get("tokenizer_class") or read_settings(folder, source).get("tokenizer_class")
    return name if isinstance(name, str) else None


def read_settings(folder: Path, source: str | None = None) -> Section:
    """Return the content of tokenizer_config.json; empty without it. source: the folder's name in messages."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    settings = parse_json(read_bytes(path), f"{source or folder}: {path.name}", unique_keys=False)
    return settings if isinstance(settings, dict) else {}


def _check_code(config: Mapping[str, object], class_name: str | None, where: str, *, nested: bool) -> None:
    if not nested and class_name is not None and _is_in_transformers(class_name):
        _warn_once(f"{where}: auto_map is ignored: transformers has {class_name}, and code in the folder is not run")
        return
    what = (
        f"auto_map refers to code for {class_name or 'the tokenizer'}, which is not run; transformers has no such class"
    )
    fix = "save the tokenizer as tokenizer.json with tokenizer_class PreTrainedTokenizerFast, and omit auto_map"
    raise UserError(Problem(where, what, fix))


def _is_in_transformers(name: str) -> bool:
    import transformers

    if not name.isidentifier() or not name.endswith(("Tokenizer", "TokenizerFast", "TokenizersBackend")):
        return False
    return any(hasattr(transformers, known) for known in (name, name.removesuffix("Fast")))


@functools.cache
def _warn_once(remark: str) -> None:
    if ranks.rank() == 0:
        print(remark, file=sys.stderr)  # standard output is for results
