# SPDX-License-Identifier: Apache-2.0
"""Adapter archives of NeMo 1.21 and later: a `peft` section in the configuration, and a flat dict of tensors.

Sources: NeMo 1.23, nemo/collections/nlp/parts/peft_config.py and parts/mixins/nlp_adapter_mixins.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nemo_launcher.adapters.registry import AdapterMethod, methods
from nemo_launcher.adapters.settings import BLOCK
from nemo_launcher.checkpoint.outline import is_peft
from nemo_launcher.config.constraints import shown
from nemo_launcher.config.layers import from_one
from nemo_launcher.data.template_pieces import Piece, template_pieces
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.values import Section, below

# <module>.adapter_layer.<adapter>.<tensor>, where an O2 wrapper and NeMo's legacy or mcore GPT differ in <module>
_KEY = re.compile(r"(.+)\.adapter_layer\.(\w+)\.(.+)")
_MCORE_LAYERS = re.compile(r"model\.decoder\.layers\.")
_TASK = "peft"


def method_name(config: Section) -> str:
    """Return `adapter` or `ia3` for an adapter's configuration, or the name of an unknown scheme."""
    if not is_peft(config):
        return "adapter" if config.get("adapter_tuning") else "ia3"
    scheme = str(below(config, "peft").get("peft_scheme"))
    method = _by_scheme().get(scheme)
    return scheme if method is None else "adapter" if method.has_block else method.name


def _by_scheme() -> dict[str, AdapterMethod]:
    return {method.scheme: method for method in methods().values() if method.scheme is not None}


METHODS = {"adapter": "adapters", "ia3": "IA3"}
"""The methods of evaluations, with their titles in messages."""


def method_mismatch(wanted: str | None, config: Mapping[str, object], path: object) -> str | None:
    """Return a message if an adapter's configuration is of another method than `wanted`, else None."""
    found = method_name(config)
    if {wanted, found} != METHODS.keys():
        return None
    return f"{path} holds {METHODS[found]}, but this evaluation is for {METHODS[str(wanted)]}"


def as_model_section(config: Section, source: str) -> dict[str, object]:
    """Return such a configuration with the keys of NeMo 1.20's adapters.

    Raises UserError for schemes and settings that are not supported.
    """
    peft = below(config, "peft")
    scheme = str(peft.get("peft_scheme"))
    method = _by_scheme().get(scheme)
    if method is None:
        where, fix = f"{source}: peft.peft_scheme", f"supported: {', '.join(_by_scheme())}"
        raise UserError(Problem(where, f"{scheme!r} is not supported", fix))
    settings = below(peft, method.section)
    where = f"{source}: peft.{method.section}"
    problems = []
    if settings.get("weight_tying"):
        what = f"{settings['weight_tying']!r} is not supported"
        problems.append(Problem(f"{where}.weight_tying", what, "supported: null"))
    selection = settings.get("layer_selection")
    layers = None if selection is None else from_one(selection)
    if selection is not None and layers is None:
        what = f"{shown(selection)} is not a list of layer numbers from 1"
        problems.append(Problem(f"{where}.layer_selection", what, "use another copy of the adapter"))
    if problems:
        raise UserError(problems)
    section = {**config, "language_model_path": config.get("restore_from_path")} | _data(config)
    chosen = {} if layers is None else {"layers": layers}
    if method.has_block:  # NeMo builds what the scheme says, whatever `type` is
        section[BLOCK] = {**settings, "type": method.name, **chosen}
    elif chosen:
        section[method.block] = chosen
    return section


def _data(config: Section) -> dict[str, object]:
    """Return prompt template and tokenization under the keys of NeMo 1.20; {} if the configuration has none."""
    train = below(config, "data").get("train_ds")
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


def nested(tensors: Mapping[str, object]) -> dict[str, object]:
    """Return a flat dict as a dict per adapter, by NeMo 1.20's keys `<module of a legacy GPT>:<adapter>`.

    Tensors of no adapter keep their keys.
    """
    state: dict[str, object] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            state[key] = value
            continue
        module = match[1].replace("model.module.", "model.", 1)
        module = _MCORE_LAYERS.sub("model.language_model.encoder.layers.", module)
        adapter = state.setdefault(f"{module}:{match[2]}", {})
        if isinstance(adapter, dict):  # otherwise shards.read_state reports the key
            adapter[match[3]] = value
    return state
