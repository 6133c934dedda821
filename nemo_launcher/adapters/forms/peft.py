# SPDX-License-Identifier: Apache-2.0
"""Export of IA3 and LoRA to PEFT's folders, and their import.

Source of keys and tensor names: PEFT 0.21, src/peft/tuners/ia3 and src/peft/tuners/lora.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from nemo_launcher.adapters.archive import check_state
from nemo_launcher.adapters.forms.card import write_card
from nemo_launcher.adapters.forms.changes import Changes, LowRank, Scaled, Target
from nemo_launcher.adapters.forms.methods import FORMS, OpenedAdapter, open_adapter, open_target, save_imported
from nemo_launcher.adapters.forms.peft_config import PeftSettings, read_settings
from nemo_launcher.adapters.forms.peft_folder import read_peft_config, read_peft_tensors, write_peft_folder
from nemo_launcher.adapters.forms.scores import read_scores
from nemo_launcher.adapters.methods.lora.config import LoraSettings
from nemo_launcher.checkpoint.finite import not_finite
from nemo_launcher.checkpoint.language_model import text_name, whole_name
from nemo_launcher.checkpoint.stored_tensor import shown
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.new_folder import new_folder
from nemo_launcher.files.values import below, text

_INSTEAD = "PEFT has no such adapters: use --to adapterhub, or nemo-launcher itself"
_ORIGIN = "converted_from"
_IA3, _FIRST, _SECOND = ".ia3_l", ".lora_A.weight", ".lora_B.weight"
_NOT_HERE = {
    "lora_embedding_A": "updates an embedding",
    "lora_embedding_B": "updates an embedding",
    "lora_magnitude_vector": "is of DoRA",
    "modules_to_save": "is a complete module that was trained too",
    "bias": "is a bias that was trained too",
}
"""Parts of the names of tensors that adapters here do not have, and what they are."""


def export_peft(
    adapter: str | Path, base: str | Path, output: str | Path, results: str | Path | None = None
) -> OpenedAdapter:
    """Write an adapter as a folder that PeftModel.from_pretrained loads on the base's Hugging Face model.

    results: of an evaluation of the adapter, whose scores the card has (forms.scores). Raises UserError for an adapter
    of another base or method, for a base that no Hugging Face architecture is, and for results that are not its own.
    """
    scores = None if results is None else read_scores(results, adapter)
    opened = open_adapter(adapter, base, _INSTEAD)
    with new_folder(output) as folder:
        write_peft_folder(folder, _config(opened), _tensors(opened))
        write_card(folder, opened, "peft", "PEFT loads this adapter on the base model.", scores)
    return opened


def _listed(chosen: Iterable[str], target: Target) -> list[str]:
    """Return modules as PEFT's lists name them: in a multi-modal model, short names would fit the other parts too."""
    return short_names(chosen, target.linear_layers()) if target.whole is None else list(map(whole_name, chosen))


def _config(opened: OpenedAdapter) -> dict[str, object]:
    target, names = opened.target, opened.changes.keys()
    layers = target.linear_layers()
    base, settings = target.model.base, opened.adapters.settings
    config: dict[str, object] = {
        "peft_type": opened.adapters.method.name.upper(),
        "task_type": target.form.layout.task,
        "base_model_name_or_path": text(below(base.config, _ORIGIN), "path"),
        "inference_mode": True,
        "target_modules": _listed(names, target),
        "fan_in_fan_out": any(layers[name].entry.module.transposed for name in names),
        "modules_to_save": None,
    }
    if isinstance(settings, LoraSettings):
        alpha = settings.scale * settings.adapter_dim
        rank = {"r": settings.adapter_dim, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
        return config | rank | {"lora_dropout": settings.adapter_dropout, "bias": "none", "use_rslora": False}
    inputs = [name for name, change in opened.changes.items() if isinstance(change, Scaled) and change.on_input]
    return config | {"feedforward_modules": _listed(inputs, target), "init_ia3_weights": True}


def _tensors(opened: OpenedAdapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for ours, change in opened.changes.items():
        name = ours if opened.target.whole is None else whole_name(ours)
        if isinstance(change, LowRank):
            tensors |= {f"{name}{_FIRST}": change.first, f"{name}{_SECOND}": change.second}
        else:
            tensors[f"{name}{_IA3}"] = change.factors[None] if change.on_input else change.factors[:, None]
    return tensors


def short_names(chosen: Iterable[str], every: Iterable[str]) -> list[str]:
    """Return the shortest endings that fit all chosen modules of a model and no others, or else complete names.

    PEFT and the servers that read its folders take `q_proj` for every module whose name ends so.
    """
    wanted, known = set(chosen), list(every)
    names: dict[str, None] = {}
    for name in (name for name in known if name in wanted):
        parts = name.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1)]
        fitting = (
            ending
            for ending in endings
            if all(other in wanted for other in known if other.endswith(f".{ending}")) and not ending[0].isdigit()
        )
        names[next(fitting, name)] = None
    return list(names)


def import_peft(folder: str | Path, base: str | Path, output: str | Path) -> tuple[dict[str, object], int]:
    """Write a PEFT adapter as a `.nemo` for a base; return its configuration and the number of its parameters.

    Raises UserError with everything in the folder that adapters here do not have, and for damaged files.
    """
    folder = Path(folder)
    settings = read_settings(read_peft_config(folder), str(folder))
    tensors = read_peft_tensors(folder)
    target = open_target(base)
    changes = _changes(tensors, settings, target, str(folder))
    own, state = FORMS[settings.method].from_changes(changes, target, str(folder))
    check_state(state, str(folder))
    if settings.dropout:
        block = dict(below(own, "adapter_tuning"))
        own = {**own, "adapter_tuning": block | {"adapter_dropout": settings.dropout, "dropout_position": "pre"}}
    return save_imported(output, own, state, target, base, {"format": "peft", "folder": folder.absolute().name})


def _changes(tensors: Mapping[str, Tensor], settings: PeftSettings, target: Target, source: str) -> Changes:
    """Return the changes in a folder's tensors. Raises UserError for tensors that are not used or do not fit."""
    layers = target.linear_layers()
    endings = (_IA3,) if settings.method == "ia3" else (_FIRST, _SECOND)
    problems: list[Problem] = []
    found: dict[str, dict[str, Tensor]] = {}
    theirs: dict[str, str] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        module = text_name(name.removesuffix(ending or ""))
        where = f"{source}: {shown(name)}"
        if ending is None or module not in layers:
            reason = next((what for part, what in _NOT_HERE.items() if part in name.split(".")), None)
            what = f"is no linear layer of this base ({target.form.layout.kind})" if reason is None else reason
            problems.append(Problem(where, what, "use an adapter of this base's architecture without it"))
        elif not tensor.is_floating_point():
            problems.append(Problem(where, f"holds {tensor.dtype}, not floating-point numbers", "copy it again"))
        elif ending in found.setdefault(module, {}):
            problems.append(Problem(where, f"is {shown(theirs[module])} under another name", "copy it again"))
        else:
            found[module][ending] = tensor.float()
            problems += not_finite(found[module][ending], where, "use another adapter: this training diverged")
            theirs[module] = name.removesuffix(ending)
    changes: Changes = {}
    for module, parts in found.items():
        sizes = layers[module].outputs, layers[module].inputs
        if settings.method == "ia3":
            change: Scaled | LowRank | str = _scaled(parts, sizes)
        else:
            change = _low_rank(parts, sizes, settings.rank(theirs[module]), settings.scale(theirs[module]))
        if isinstance(change, str):
            problems.append(Problem(f"{source}: {shown(module)}", change, "use an adapter of this base's architecture"))
        else:
            changes[module] = change
    if problems:
        raise UserError(problems[:10])
    return changes


def _scaled(parts: Mapping[str, Tensor], sizes: tuple[int, int]) -> Scaled | str:
    vector = parts[_IA3]
    if tuple(vector.shape) in ((sizes[0], 1), (1, sizes[1])):
        return Scaled(vector.flatten(), on_input=vector.size(0) == 1)
    return f"has a vector of shape {tuple(vector.shape)}, which is neither [{sizes[0]}, 1] nor [1, {sizes[1]}]"


def _low_rank(parts: Mapping[str, Tensor], sizes: tuple[int, int], rank: int, scale: float) -> LowRank | str:
    first, second = parts.get(_FIRST), parts.get(_SECOND)
    if first is None or second is None:
        return f"lacks {_FIRST if first is None else _SECOND}"
    if tuple(first.shape) != (rank, sizes[1]) or tuple(second.shape) != (sizes[0], rank):
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        return f"has matrices of shape {shapes}; rank {rank} needs ({rank}, {sizes[1]}) and ({sizes[0]}, {rank})"
    return LowRank(first, second, scale)
