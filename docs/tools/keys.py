# SPDX-License-Identifier: Apache-2.0
"""Writer of docs/keys.md, the reference of every configuration key: `make docs-reference`.

Names, types, defaults and meanings are those of the sections' dataclasses; shipped values are those of conf/.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_launcher.adapters.methods.ia3.config import Ia3Settings
from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters.registry import sections as cluster_sections
from nemo_launcher.config.constraints import Bounds, Form, Length
from nemo_launcher.config.keys import hints, is_section, variants_of
from nemo_launcher.config.overrides import hydra_value
from nemo_launcher.config.schema import describe
from nemo_launcher.config.sections import TopLevel

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "keys.md"

HEAD = """# Every key

Written by `make docs-reference` from the schema and from `conf/`; changes by hand are lost. `key=value` on the command
line sets a key, with its full name: `adapter_learning.model.optim.lr=1e-3`. A key that `conf/` does not show needs no
`+` in front.

- **default**: the value of a key that no file and no command line sets. A dash means that there has to be one.
- **shipped**: what `conf/` sets, by file where the files differ. `${...}` refers to another key.

"""
ADAPTER, IA3 = "adapter_learning", "ia3_learning"
FILES: dict[str, tuple[str, ...]] = {
    "data_preparation": ("squad",),
    "conversion_hf2nemo": ("hf", "hf_gpt", "hf_t5"),
    "adapter_learning": ("gpt3/squad", "llama/squad", "t5/squad"),
    "ia3_learning": ("gpt3/squad", "llama/squad", "t5/squad"),
    "evaluation": tuple(
        f"{method}_{family}/squad" for method in ("adapter", "ia3") for family in ("gpt3", "llama", "t5")
    ),
}
"""The files of each stage whose values are shown."""
Shipped = Mapping[str, object]
"""File -> its section."""
ABSENT = object()


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return HEAD + "\n".join(_chapters()).rstrip() + "\n"


def _chapters() -> Iterator[str]:
    yield "## Top level\n"
    yield "`stages` lists the stages to run, and `cluster_type` names where: `bcm`, `bcp`, `k8s` or `interactive`.\n"
    yield from _section(TopLevel, "", "", {"conf": _composed()})
    for name, schema in cluster_sections():
        yield f"## `cluster`, with `cluster_type={name}`\n"
        yield from _section(schema, "cluster", "", {"conf": _composed(cluster=name)["cluster"]})
    for stage, schema in STAGES.items():
        if stage == IA3:
            yield f"## `{stage}`\n"
            yield f"The keys of `{ADAPTER}`, with `model.ia3_tuning` in place of `model.adapter_tuning`.\n"
            yield from _section(Ia3Settings, stage, "model.ia3_tuning.", _shipped_of(IA3, "model", "ia3_tuning"))
        else:
            yield f"## `{stage}`\n"
            also = _shipped_of(IA3) if stage == ADAPTER else {}
            yield from _section(schema, stage, "", {**_shipped_of(stage), **also})


def _shipped_of(stage: str, *keys: str) -> dict[str, object]:
    """Return the section of each file of a stage, or what the file has at a path of keys in it."""
    found = {f"{stage}={file}": _composed(**{stage: file})[stage] for file in FILES[stage]}
    for key in keys:
        found = {file: _value(section, key) for file, section in found.items()}
    return found


def _composed(**choices: str) -> dict[str, object]:
    config = compose("config", [f"{group}={file}" for group, file in choices.items()])
    return typing.cast("dict[str, object]", OmegaConf.to_container(config, resolve=False))


def _section(schema: type, owner: str, prefix: str, shipped: Shipped) -> Iterator[str]:
    """Yield the table of a section's own keys, then those of the sections in it. owner: what the keys are part of."""
    meanings = _meanings(schema)
    rows, below = [], []
    for field in dataclasses.fields(schema):
        key, hint = f"{prefix}{field.name}", hints(schema)[field.name]
        values = {file: _value(section, field.name) for file, section in shipped.items() if section is not ABSENT}
        inner = list(_sections_in(hint))
        below += [(f"{key}`{title}", meanings[field.name], each, values) for title, each in inner]
        if not inner or _has_plain_values(hint):
            rows.append((f"`{key}`", _type(hint), _default(field), _shipped(values), meanings[field.name]))
    if rows:
        yield _table(rows)
    for key, meaning, each, values in below:
        name, _, title = key.partition("`")
        yield f"### `{owner and f'{owner}.'}{name}`{title}\n\n{meaning}\n"
        yield from _section(each, owner, f"{name}.", values)


def _has_plain_values(hint: object) -> bool:
    """Return whether a key with a section may also have a value without keys, other than null."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = [part for part in typing.get_args(hint) if part is not type(None)] if is_union else [hint]
    return len(parts) > 1 and not all(any(_sections_in(part)) for part in parts)


def _sections_in(hint: object) -> Iterator[tuple[str, type]]:
    """Yield the sections that a key's value may be, each with what tells it from the others in a title."""
    variants = variants_of(hint)
    if variants is not None:
        for name, each in variants.by_name().items():
            yield f", with `{variants.key}: {name}`", each
    elif is_section(hint):
        yield "", hint
    elif typing.get_origin(hint) is list:
        yield from ((", each entry", each) for _, each in _sections_in(typing.get_args(hint)[0]))
    elif typing.get_origin(hint) is typing.Annotated:
        yield from _sections_in(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _sections_in(each)


def _value(section: object, key: str) -> object:
    """Return the value that a file gives to a key; ABSENT if it gives none. Of a list of sections, the first counts."""
    if isinstance(section, list):
        section = section[0] if section else None
    return section.get(key, ABSENT) if isinstance(section, Mapping) else ABSENT


def _meanings(schema: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, its bases' fields included."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__):
        if not is_section(each):
            continue
        (tree,) = [
            node
            for node in ast.walk(ast.parse(inspect.getsource(sys.modules[each.__module__])))
            if isinstance(node, ast.ClassDef) and node.name == each.__name__
        ]
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return _code(field.default)
    return "-" if field.default_factory is dataclasses.MISSING else _code(field.default_factory())


def _code(value: object) -> str:
    if value == "???":
        return "to be set"
    text = value if isinstance(value, str) else hydra_value(value).replace("\\${", "${")  # as the file has it
    return f"`{text}`"


def _shipped(values: Shipped) -> str:
    """Return the values of all files in one cell: once if they agree, else each with its files."""
    files: dict[str, list[str]] = {}
    for file, value in values.items():
        files.setdefault("" if value is ABSENT else _code(value), []).append(file)
    if len(files) == 1:
        return next(iter(files))
    return "; ".join(f"{_together(names, [*values])}: {text or 'none'}" for text, names in files.items())


def _together(names: list[str], every: list[str]) -> str:
    """Return the shortest words for some of all files: their stages, their choices, or each of them."""
    for part in (0, 2):
        words = dict.fromkeys(name.partition("=")[part] for name in names)
        if names == [name for name in every if name.partition("=")[part] in words]:
            return ", ".join(word.removesuffix("/squad") for word in words)
    return ", ".join(name.removesuffix("/squad") for name in names)


def _type(hint: object) -> str:
    """Return what a key accepts, with its bounds."""
    bounds = [words for words in _bounds(hint) if words]
    return ", ".join([describe(hint), *bounds])


def _bounds(hint: object) -> Iterator[str]:
    if typing.get_origin(hint) is typing.Annotated:
        for part in typing.get_args(hint)[1:]:
            if isinstance(part, (Bounds, Form)):
                yield part.words
            elif isinstance(part, Length):
                yield f"{part.minimum} or more entries" if part.maximum is None else f"{part.maximum} entries"
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _bounds(each)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head = ["| key | accepts | default | shipped | meaning |", "| --- | --- | --- | --- | --- |"]
    body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([*head, *body]) + "\n"


if __name__ == "__main__":
    main()
