# SPDX-License-Identifier: Apache-2.0
"""NeMo 2 checkpoints: a folder with `weights/` (checkpoint.dist_metadata) and `context/`, which describes the model.

`context/model.yaml` has every field of the model's configuration, with names of classes and functions; they are
compared with a list, and nothing is imported or built. `context/io.json`, from which NeMo builds the model, leaves out
the defaults of its classes; what it does hold must agree with the YAML. Imports no torch. Sources: NeMo 2.0 to 2.5,
nemo/lightning/io/mixin.py (IOMixin.io_dump) and pl.py; fiddle 0.3, experimental/serialization.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set

from nemo_launcher.checkpoint.nemo2_config import TARGET, ModelSettings, target_of
from nemo_launcher.checkpoint.nemo2_fields import FIXED, OTHERS, RENAMED, SAME, SCALING
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, parse_json
from nemo_launcher.files.foreign_yaml import MAX_YAML_BYTES, parse_yaml
from nemo_launcher.files.values import Section

WEIGHTS = "weights"
"""The folder of the weights."""
MODEL = "context/model.yaml"
IO = "context/io.json"
_TOKENIZER = "context/nemo_tokenizer"
_ADAPTER = "adapter_metadata.json"
_CONFIG_PATH = "<root>.model.config"
_TOKENIZERS = "nemo.collections.common.tokenizers."
_AUTO = f"{_TOKENIZERS}huggingface.auto_tokenizer.AutoTokenizer"
_SENTENCEPIECE = f"{_TOKENIZERS}sentencepiece_tokenizer.SentencePieceTokenizer"
_GPT2 = ("gpt2", "megatron-gpt-345m", "GPT2BPETokenizer")
_ADDED_TOKENS = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token|additional_special_tokens|special_tokens|legacy")
_COMPARED = {*SAME, *RENAMED, *OTHERS, *SCALING, *FIXED}


def is_nemo2(names: Set[str]) -> bool:
    """Return whether a folder with these files is a NeMo 2 checkpoint of a complete model."""
    return MODEL in names and not any(name.rpartition("/")[2] == _ADAPTER for name in names)


def read_context(read: Callable[[str, int], bytes], names: Set[str], source: str) -> dict[str, object]:
    """Return what `model_config.yaml` would hold for a NeMo 2 checkpoint.

    read: returns a file's content, up to a size; names: of all files; source: the folder's name, for messages. Raises
    UserError with all classes, fields and values that are not supported.
    """
    where = f"{source}: {MODEL}"
    model = parse_yaml(read(MODEL, MAX_YAML_BYTES), where)
    config = model.get("config") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(config, Mapping):
        raise UserError(Problem(where, "holds no `config` section", "copy the folder again"))
    fields = {str(name): value for name, value in config.items()}
    settings = ModelSettings(fields, f"{where}: config.")
    result = settings.read()
    section, problems = _tokenizer(model.get("tokenizer"), names, f"{where}: tokenizer")
    problems = settings.problems + problems
    if IO in names:
        problems += _disagreements(fields, parse_json(read(IO, MAX_TEXT_BYTES), f"{source}: {IO}"), where)
    if problems:
        raise UserError(problems[:20])
    return result | {"tokenizer": section}


def _tokenizer(described: object, names: Set[str], where: str) -> tuple[Section, list[Problem]]:
    """Return the `tokenizer` section of `model_config.yaml`, and settings that are not supported."""
    given: Section = described if isinstance(described, Mapping) else {}
    added = [
        Problem(f"{where}.{key}", "adds special tokens to those of its files", "add them to the files, and write null")
        for key, value in given.items()
        if isinstance(key, str) and _ADDED_TOKENS.fullmatch(key) and value not in (None, False, [], {})
    ]
    kind = target_of(given)
    if kind == _SENTENCEPIECE:
        return {"library": "sentencepiece", "model": f"nemo:{_file(given, 'model_path')}"}, added
    if kind not in (_AUTO, ""):
        what, fix = f"{kind[:100]!r} is not supported", f"supported: {_AUTO}, {_SENTENCEPIECE}"
        return {}, [*added, Problem(where, what, fix)]
    files = {"vocab_file": _file(given, "vocab_file"), "merge_file": _file(given, "merges_file")}
    name = _text(given.get("pretrained_model_name"))
    if name in _GPT2 and all(file in names for file in files.values()):
        gpt2 = {"library": "megatron", "type": _GPT2[-1], **{key: f"nemo:{file}" for key, file in files.items()}}
        return gpt2, added
    folder = _file(given, "pretrained_model_name")
    is_inside = any(file.startswith(f"{folder}/") for file in names)
    return {"library": "huggingface", "type": f"nemo:{folder if is_inside else _TOKENIZER}", "use_fast": True}, added


def _file(section: Section, key: str) -> str:
    """Return the name in the checkpoint of a file or folder of the tokenizer."""
    return f"context/{_text(section.get(key)).removeprefix('./')}"


def _text(value: object) -> str:
    """Return a text, which NeMo also writes as the attribute `attr` of an object."""
    if isinstance(value, Mapping):
        value = value.get("attr")
    return value if isinstance(value, str) else ""


# --- io.json --------------------------------------------------------------------------------------------------------


def _disagreements(fields: Section, described: object, where: str) -> list[Problem]:
    """Return the fields whose value in io.json is not that in model.yaml; NeMo would build another model."""
    objects = described.get("objects") if isinstance(described, Mapping) else None
    objects = objects if isinstance(objects, Mapping) else {}
    found = next((item for item in objects.values() if _CONFIG_PATH in _list(item, "paths")), None)
    arguments = _arguments(found, objects)
    wrong = [name for name in sorted(_COMPARED & arguments.keys()) if not _agree(arguments[name], fields.get(name))]
    kind = _arguments(_referred(found, "metadata", objects), objects).get("fn_or_cls")
    if kind is not None and not _agree(kind, fields):
        wrong.append(TARGET)
    what, fix = f"is not the value in {IO}", "give both files the same value"
    return [Problem(f"{where}: config.{name}", what, fix) for name in wrong]


def _referred(value: object, key: str, objects: Section) -> object:
    """Return the object that a value refers to under a key; None without one."""
    reference = value.get(key) if isinstance(value, Mapping) else None
    return objects.get(str(reference.get("key"))) if isinstance(reference, Mapping) else None


def _arguments(found: object, objects: Section) -> dict[str, object]:
    """Return the plain arguments of an object in fiddle's JSON: numbers, texts, and lists of them."""
    arguments: dict[str, object] = {}
    for name, value in _items(found):
        match = re.fullmatch(r"Attr\(name='(\w+)'\)", name)
        if match is None:
            continue
        if isinstance(value, Mapping) and value.get("type") == "ref":
            leaves = [_leaf(entry) for _, entry in _items(objects.get(str(value.get("key"))))]
            if leaves and not any(isinstance(leaf, Mapping) for leaf in leaves):
                arguments[match[1]] = leaves
        elif not isinstance(leaf := _leaf(value), Mapping):
            arguments[match[1]] = leaf
    return arguments


def _items(found: object) -> list[tuple[str, object]]:
    """Return the elements of an object, each with its place, such as `Attr(name='num_layers')`."""
    pairs = [item for item in _list(found, "items") if isinstance(item, list) and len(item) == 2]
    return [(str(name), value) for name, value in pairs]


def _leaf(value: object) -> object:
    """Return a plain value, or the last part of a function's name; other objects are returned as they are."""
    if isinstance(value, Mapping) and value.get("type") == "leaf":
        return value.get("value")
    if isinstance(value, Mapping) and value.get("type") == "pyref":
        return str(value.get("name")).rpartition(".")[2]
    return value


def _agree(value: object, other: object) -> bool:
    named = target_of(other)
    return value == (named.rpartition(".")[2] if named else other)


def _list(value: object, key: str) -> list[object]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []
