# SPDX-License-Identifier: Apache-2.0
"""Adapters of NeMo 1.21 and later: a `peft` section in the configuration, and one flat dictionary of tensors.

Sources: NeMo 1.23, nemo/collections/nlp/parts/peft_config.py and parts/mixins/nlp_adapter_mixins.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemo_launcher.adapters.registry import AdapterMethod, methods
from nemo_launcher.checkpoint.outline import is_peft
from nemo_launcher.data.templates import Piece, template_pieces
from nemo_launcher.errors import Problem, UserError

# The model inside O2's wrapper or not, the layers of NeMo's legacy or mcore GPT, the adapter, its tensor.
_KEY = re.compile(r"(.+)\.adapter_layer\.(\w+)\.(.+)")
_MCORE_LAYERS = re.compile(r"model\.decoder\.layers\.")
_TASK = "peft"


def method_name(config: Mapping[str, Any]) -> str:
    """Return adapter or ia3, whichever an adapter's configuration says; an unknown scheme's own name."""
    if not is_peft(config):
        return "adapter" if config.get("adapter_tuning") else "ia3"
    scheme = str(config["peft"]["peft_scheme"])
    method = _by_scheme().get(scheme)
    return scheme if method is None else "adapter" if method.has_block else method.name


def _by_scheme() -> dict[str, AdapterMethod]:
    return {method.scheme: method for method in methods().values() if method.scheme is not None}


METHODS = {"adapter": "adapters", "ia3": "IA3"}
"""What an evaluation can be for, by its name."""


def other_method(wanted: str | None, config: Mapping[str, object], path: object) -> str | None:
    """Return what to say of an adapter's configuration of the other method than the one wanted; None: it is that."""
    found = method_name(config)
    if {wanted, found} != METHODS.keys():
        return None
    return f"{path} holds {METHODS[found]}, but this evaluation is for {METHODS[str(wanted)]}"


def as_model_section(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration of this form with the keys that NeMo 1.20's adapters have.

    Raises UserError for schemes and settings that are not supported.
    """
    peft = config["peft"]
    scheme = peft["peft_scheme"]
    method = _by_scheme().get(scheme)
    if method is None:
        where, fix = f"{source}: peft.peft_scheme", f"supported: {', '.join(_by_scheme())}"
        raise UserError(Problem(where, f"{scheme!r} is not supported", fix))
    settings = peft.get(method.section) or {}
    problems = [
        Problem(f"{source}: peft.{method.section}.{key}", f"{settings[key]!r} is not supported", "supported: null")
        for key in ("layer_selection", "weight_tying")
        if settings.get(key)
    ]
    if problems:
        raise UserError(problems)
    section = {**config, "language_model_path": config.get("restore_from_path")} | _data(config)
    if method.has_block:  # whatever `type` it holds, the scheme decides what NeMo builds
        section["adapter_tuning"] = {**settings, "type": method.name}
    return section


def _data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return prompt template and tokenisation under the keys of NeMo 1.20; {} where the configuration has none."""
    train = (config.get("data") or {}).get("train_ds")
    if not isinstance(train, Mapping) or not train.get("prompt_template"):
        return {}
    template, answer = str(train["prompt_template"]).replace("\\n", "\n"), str(train.get("label_key", "output"))
    at_end = template_pieces(template)[-1] == Piece(answer, is_field=True)
    entry = {
        "taskname": _TASK,
        "prompt_template": template,
        "answer_field": answer,
        "answer_only_loss": bool(config.get("answer_only_loss", True)) and at_end,
        "truncate_field": str(train["truncation_field"]).split(",")[0] if train.get("truncation_field") else None,
    }
    keys = ("add_bos", "add_eos", "max_seq_length")
    return {"task_templates": [entry], "data": {key: train[key] for key in keys if train.get(key) is not None}}


def nested(tensors: Mapping[str, object]) -> dict[str, Any]:
    """Return a flat dictionary as one of dictionaries, by NeMo 1.20's keys `<module of a legacy GPT>:<adapter>`.

    What is no adapter's tensor is left as it is.
    """
    state: dict[str, Any] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            state[key] = value
            continue
        module = match[1].replace("model.module.", "model.", 1)
        module = _MCORE_LAYERS.sub("model.language_model.encoder.layers.", module)
        tensors = state.setdefault(f"{module}:{match[2]}", {})
        if isinstance(tensors, dict):  # else both forms name one adapter, which is told where its tensors are checked
            tensors[match[3]] = value
    return state
