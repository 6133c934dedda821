# SPDX-License-Identifier: Apache-2.0
"""Import of the bottleneck adapters that AdapterHub's library `adapters` writes (adapters.forms.adapterhub)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.adapters.archive import check_state
from nemo_launcher.adapters.forms.adapterhub import FIXED, NORMS, UP, WEIGHTS, check_kind, down_of, path_of
from nemo_launcher.adapters.forms.changes import Target, adapters_of, whole_state
from nemo_launcher.adapters.forms.methods import open_target, save_imported
from nemo_launcher.adapters.forms.peft_folder import is_peft_folder, read_peft_config
from nemo_launcher.checkpoint.safetensors_file import read_header
from nemo_launcher.checkpoint.stored_tensor import pointer_problem, shown
from nemo_launcher.checkpoint.stored_values import stored_values
from nemo_launcher.checkpoint.tensors import read_weight_file
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import reading
from nemo_launcher.files.values import Section, below, number, text

_SAFE_WEIGHTS = "adapter.safetensors"
_OTHERS = {"mh_adapter": True, "output_adapter": True}
_UNUSED = (
    *("init_weights", "init_weights_seed", "inv_adapter_reduction_factor", "architecture", "phm_dim", "phm_rank"),
    *("factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range"),
    *("learn_phm", "hypercomplex_nonlinearity", "phm_bias"),
)
"""Settings of BnConfig without effect on a trained adapter that has none of the others."""
_READ = ("ln_before", "ln_after", "reduction_factor", "leave_out", "dropout")
_OTHER_NAMES = {"non_linearity": {"swish": "silu"}}
_AGAIN = "copy the folder again"
_FIX = "use an adapter without it: adapters here have no equal"


def is_adapterhub(folder: str | Path) -> bool:
    """Return whether a folder is of AdapterHub, and not of PEFT. Raises UserError if its configuration is malformed."""
    return (
        is_peft_folder(Path(folder))
        and "peft_type" not in (found := read_peft_config(Path(folder)))
        and ("config" in found)
    )


def import_adapterhub(folder: str | Path, base: str | Path, output: str | Path) -> tuple[dict[str, object], int]:
    """Write a bottleneck adapter of AdapterHub as a `.nemo`; return its configuration and number of parameters.

    Raises UserError with all settings and tensors that adapters here do not have, and for damaged files.
    """
    folder = Path(folder)
    content = read_peft_config(folder)
    problems = list(_setting_problems(content, str(folder / "adapter_config.json")))
    if problems:
        raise UserError(problems)
    config = below(content, "config")
    tensors = read_adapterhub_tensors(folder)
    target = open_target(base)
    check_kind(target, str(base))
    norm = "pre" if config.get("ln_before") else "post" if config.get("ln_after") else None
    name = text(content, "name") or "adapter"
    settings = _settings(config, norm, tensors, name, target, str(folder))
    adapters = adapters_of(target.model, settings)
    state: dict[str, dict[str, Tensor]] = {}
    used: set[str] = set()
    for key, place in adapters.places.items():
        path = path_of(target, place, name)
        state[key] = {}
        for theirs, ours in _names(norm):
            shape = adapters.whole_shape(key, ours) if ours else ()
            problems += _tensor_problems(tensors, f"{path}{theirs}", ours, shape, str(folder))
            used.add(f"{path}{theirs}")
            if ours and f"{path}{theirs}" in tensors:
                state[key][ours] = tensors[f"{path}{theirs}"].float()
    unused = sorted(tensors.keys() - used)
    what = "is no part of a bottleneck adapter behind a sub-layer of this base"
    problems += [Problem(f"{folder}: {shown(other)}", what, _FIX) for other in unused]
    if problems:
        raise UserError(problems[:10])
    complete = whole_state(adapters, state)
    check_state(complete, str(folder))
    origin = {"format": "adapterhub", "folder": folder.absolute().name}
    return save_imported(output, settings, complete, target, base, origin)


def _setting_problems(content: Section, source: str) -> Iterator[Problem]:
    config = content.get("config")
    if not isinstance(content.get("name"), str | None):
        yield Problem(f"{source}: name", f"{shown(str(content['name']))} is not text", _AGAIN)
    if not isinstance(config, Mapping) or not config:
        yield Problem(source, "has no section `config`", "use an adapter that the library adapters 1.x saved")
        return
    for key, wanted in (FIXED | _OTHERS).items():
        found = config.get(key, wanted if key not in (*_OTHERS, "non_linearity") else None)
        found = _OTHER_NAMES.get(key, {}).get(str(found), found)
        if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
            yield Problem(f"{source}: {key}", f"is {found!r}, but adapters here have {wanted!r}", _FIX)
    if config.get("ln_before") and config.get("ln_after"):
        yield Problem(f"{source}: ln_after", "is true beside ln_before, but adapters here have one norm", _FIX)
    if isinstance(config.get("reduction_factor"), Mapping):
        yield Problem(f"{source}: reduction_factor", "differs between layers, but adapters here have one width", _FIX)
    for key in ("ln_before", "ln_after"):
        if not isinstance(config.get(key), bool | None):
            yield Problem(f"{source}: {key}", f"{shown(str(config[key]))} is neither true nor false", _AGAIN)
    dropout = config.get("dropout")
    if dropout is not None and not (type(dropout) in (int, float) and 0 <= dropout < 1):
        yield Problem(f"{source}: dropout", f"{shown(str(dropout))} is not a probability below 1", _AGAIN)
    for key in sorted(map(str, config.keys() - {*FIXED, *_OTHERS, *_UNUSED, *_READ})):
        yield Problem(f"{source}: {shown(key)}", "is not known and may change the results", _FIX)


def read_adapterhub_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the weight file; nothing in it is executed."""
    with reading(folder):
        path = next((folder / name for name in (_SAFE_WEIGHTS, WEIGHTS) if (folder / name).exists()), None)
        if path is None:
            what = f"holds neither {WEIGHTS} nor {_SAFE_WEIGHTS}"
            raise UserError(Problem(str(folder), what, _AGAIN))
        problem = pointer_problem(path)
        if problem is not None:
            raise UserError(problem)
        if path.name == WEIGHTS:
            stored: Mapping[str, object] = read_weight_file(path)
        else:
            stored = {name: stored_values(tensor) for name, tensor in read_header(path).items()}
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    if len(tensors) < len(stored) or not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise UserError(Problem(str(path), "holds other values than floating-point tensors", "save the adapter again"))
    return tensors


def _settings(
    config: Section, norm: str | None, tensors: Mapping[str, Tensor], name: str, target: Target, source: str
) -> dict[str, object]:
    """Return the settings of an adapter here, with the width and the layers of the tensors."""
    marker = f"adapters.{name}.{down_of(norm)}.weight"
    downs = [tensor for path, tensor in tensors.items() if path.endswith(marker) and tensor.dim() == 2]
    widths = {tensor.size(0) for tensor in downs if tensor.numel()}
    if len(widths) != 1:
        what = f"holds bottlenecks of {len(widths)} widths" if widths else f"holds no tensor that ends in {marker}"
        raise UserError(Problem(source, what, "use an adapter of one width, saved by the library adapters"))
    block: dict[str, object] = {"type": "parallel_adapter", "adapter_dim": widths.pop(), "norm_position": norm}
    block["adapter_dropout"] = number(config, "dropout") or 0.0
    places = adapters_of(target.model, {"adapter_tuning": block}).places.values()
    used = {(p.stack, p.layer) for p in places if f"{path_of(target, p, name)}{down_of(norm)}.weight" in tensors}
    if not used:
        what = f"holds no adapter behind a sub-layer of this base ({target.form.layout.kind})"
        raise UserError(Problem(source, what, "use an adapter of this base's architecture"))
    if used != {(place.stack, place.layer) for place in places}:
        by_stack = {stack: sorted(n for s, n in used if s == stack) or "none" for stack in target.model.stacks}
        block["layers"] = next(iter(by_stack.values())) if len(by_stack) == 1 else by_stack
    return {"adapter_tuning": block}


def _names(norm: str | None) -> Iterator[tuple[str, str]]:
    """Yield AdapterHub's name of each tensor of an adapter, and ours; none for biases, which adapters here lack."""
    for theirs, ours in ((down_of(norm), "linear_in"), (UP, "linear_out")):
        yield f"{theirs}.weight", f"{ours}.weight"
        yield f"{theirs}.bias", ""
    for theirs in NORMS.get(norm or "", ()):
        for part in ("weight", "bias"):
            yield f"{theirs}.{part}", f"layer_norm.{part}"


def _tensor_problems(
    tensors: Mapping[str, Tensor], name: str, ours: str, shape: tuple[int, ...], source: str
) -> Iterator[Problem]:
    """Yield what is wrong with a tensor; shape: that of ours."""
    tensor, where = tensors.get(name), f"{source}: {shown(name)}"
    if tensor is None:
        if ours:
            yield Problem(where, "is absent", "use an adapter of this base's architecture, in whole layers")
    elif not ours and torch.count_nonzero(tensor):
        yield Problem(where, "is a bias that is not 0: adapters here have none", _FIX)
    elif ours and tuple(tensor.shape) != shape:
        what = f"has shape {tuple(tensor.shape)}, but {shape} is needed"
        yield Problem(where, what, "use an adapter of this base's architecture")
