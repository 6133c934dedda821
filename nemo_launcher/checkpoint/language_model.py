# SPDX-License-Identifier: Apache-2.0
"""The language model in a multi-modal Hugging Face model: its configuration and its tensors. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemo_launcher.checkpoint.architectures.multimodal import LAYOUTS, MULTI_MODAL, MultiModal
from nemo_launcher.checkpoint.hf_architectures import COMMON_KEYS, config_problems, is_one_of
from nemo_launcher.checkpoint.stored_tensor import shown, some_of
from nemo_launcher.errors import Problem, UserError, json_kind

KEY = "model.hf_language_model"
"""The key of a conversion that asks for the language model of a multi-modal model."""
OPTION = f"conversion_hf2nemo.{KEY}=True"
LANGUAGE_MODEL_OF = "language_model_of"
"""The key of a base, below `converted_from`, for the architecture that it is the language model of."""
TEXT = "text_config"
TIED = "tie_word_embeddings"
_AGAIN = "copy config.json again"
_NOT_OURS = ("architectures", "model_type", TIED)
_TYPES = {"dtype", "torch_dtype"}
"""Two names of one key."""


def multi_modal(config: Mapping[str, object]) -> MultiModal | None:
    """Return the multi-modal architecture that a config.json names, if its language model can be converted."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return MULTI_MODAL.get(name) if isinstance(name, str) else None


def asked_problem(source: Path, *, whole: MultiModal | None, asked: bool) -> Problem | None:
    """Return a Problem if the language model of a multi-modal model is not asked for, or of another model is.

    whole: the multi-modal model, None for a language model.
    """
    if whole is not None and not asked:
        what = f"{whole.name} also sees images; only its language model can be converted, if that is asked for"
        return Problem(str(source), what, f"add {OPTION}")
    if whole is None and asked:
        what = f"{source} is a language model already, without parts to leave out"
        return Problem(KEY, what, f"remove {OPTION}")
    return None


def language_config(config: Mapping[str, object], whole: MultiModal) -> tuple[dict[str, object], str | None]:
    """Return the config.json of a multi-modal model's language model, and what prevents that.

    It is `text_config` with the keys of `config` that apply to the whole model: types of weights, tokens,
    quantization. If both have a key, that of the whole model counts, as in transformers. `tie_word_embeddings` depends
    on the stored weights too (`is_tied`) and is not among them.
    """
    text = config.get(TEXT)
    if not isinstance(text, Mapping):
        return {}, "is absent" if TEXT not in config else f"is {json_kind(text)}, not a mapping"
    kinds = {one.kind: one for one in whole.texts}
    kind = text.get("model_type", whole.texts[0].kind)
    if not isinstance(kind, str) or kind not in kinds:
        return {}, f"its model_type {shown(str(kind))} is not supported; supported: {', '.join(kinds)}"
    above = {key: value for key, value in config.items() if key in COMMON_KEYS and value is not None}
    names: dict[str, object] = {"architectures": [kinds[kind].name], "model_type": kind}
    left_out = {*_NOT_OURS, *(_TYPES if above.keys() & _TYPES else ())}
    own = {key: value for key, value in text.items() if key not in left_out}
    return {**whole.defaults, **own, **above, **names}, None


def language_problems(config: Mapping[str, object], whole: MultiModal, source: str) -> list[Problem]:
    """Return what prevents the conversion of a multi-modal model's language model. source: its config.json."""
    problems = []
    kind = config.get("model_type")
    if kind is not None and kind != whole.kind:
        what = f"{shown(str(kind))} does not belong to architecture {whole.name}"
        fix = f'correct one of them: the model_type of {whole.name} is "{whole.kind}"'
        problems.append(Problem(f"{source}: model_type", what, fix))
    known = COMMON_KEYS | {*whole.others, TEXT, TIED}
    unknown = [str(key) for key in config if key not in known and config[key] is not None and str(key)[:1] != "_"]
    if unknown:
        what = f"{len(unknown)} keys are unknown for {whole.name} and may change its results: {some_of(unknown)}"
        fix = "remove them if the model's own code does not use them, or convert another model"
        problems.append(Problem(source, what, fix))
    where = f"{source}: {TEXT}"
    own, wrong = language_config(config, whole)
    if wrong is not None:
        return [*problems, Problem(where, wrong, _AGAIN)]
    for place, section in ((source, config), (where, config[TEXT])):
        tied = section.get(TIED) if isinstance(section, Mapping) else None
        if tied is not None and not isinstance(tied, bool):
            problems.append(Problem(f"{place}: {TIED}", f"{shown(str(tied))} is neither true nor false", _AGAIN))
    odd = [
        f"{key} {shown(str(own[key]))}"
        for key, values in whole.fixed.items()
        if own.get(key) is not None and not is_one_of(own[key], values)
    ]
    if odd:
        what = f"not supported: {', '.join(odd)}: {whole.name} and its language model alone would give other results"
        problems.append(Problem(where, what, "remove it if the model was trained without it"))
    return problems + config_problems(own, where)


def is_tied(config: Mapping[str, object], whole: MultiModal, *, has_head: bool) -> bool:
    """Return whether the language model's embedding is its head. has_head: whether a head is stored.

    The key of the whole model counts, as in transformers since 5.0; earlier versions read that of `text_config`, and
    stored a head if it was false.
    """
    text = config.get(TEXT)
    outer, inner = config.get(TIED), text.get(TIED) if isinstance(text, Mapping) else None
    if outer is not None:
        return bool(outer) and not (inner is False and has_head)
    default = not has_head if whole.is_tied is None else whole.is_tied
    return default if inner is None else bool(inner)


def language_names(stored: Iterable[str], whole: MultiModal, source: Path) -> dict[str, str]:
    """Return {stored name: name in the language model} of its tensors; those of other parts are left out.

    Raises UserError for names of neither, for names of two layouts, and if no tensor is the language model's.
    """
    names = list(stored)
    sorted_names = [_sorted(names, layout) for layout in LAYOUTS]
    own, others = max(sorted_names, key=lambda found: len(found[0]) + len(found[1]))
    foreign = set(names) - own.keys() - others
    if foreign:
        known = {name for found in sorted_names for name in (*found[0], *found[1])}
        what = f"{len(foreign)} tensors belong neither to its language model nor to its other parts: {some_of(foreign)}"
        if foreign <= known:
            what = f"tensors have names of two layouts: {some_of(sorted(own)[:1])} and {some_of(foreign)}"
        raise UserError(Problem(str(source), what, f"use a copy that is a {whole.name} alone"))
    if not own:
        what = f"none of its {len(names)} tensors belongs to the language model of {whole.name}"
        raise UserError(Problem(str(source), what, "use a complete copy of the model"))
    return own


def text_name(name: str) -> str:
    """Return a module's name in the language model, for its name there or in the whole model, in any layout."""
    for layout in LAYOUTS:
        own = _sorted([name], layout)[0]
        if own:
            return own[name]
    return name


def whole_name(name: str) -> str:
    """Return a module's name in the whole model as transformers 5 has it, for its name in the language model."""
    starts = ((start, own) for start, own in LAYOUTS[-1].items() if own is not None and name.startswith(own))
    start, own = next(starts, ("", ""))
    return start + name.removeprefix(own)


def left_out_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a text on the tensors that are left out. shapes: theirs by name."""
    weights = sum(math.prod(shape) for shape in shapes.values()) / 1e6
    return f"without {len(shapes)} tensors of its other parts ({weights:,.0f} million weights)"


def _sorted(names: Iterable[str], layout: Mapping[str, str | None]) -> tuple[dict[str, str], set[str]]:
    """Return the names of the language model, and those of other parts, in a layout."""
    own, others = {}, set()
    for name in names:
        start = next((start for start in layout if name.startswith(start)), None)
        if start is None:
            continue
        changed = layout[start]
        if changed is None:
            others.add(name)
        else:
            own[name] = changed + name.removeprefix(start)
    return own, others
