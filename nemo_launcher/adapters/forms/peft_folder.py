# SPDX-License-Identifier: Apache-2.0
"""The files of a PEFT adapter: adapter_config.json, and the weights as safetensors or in a torch.save file.

Source: PEFT 0.21, src/peft/utils/save_and_load.py and config.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nemo_launcher.checkpoint.safetensors_file import read_header
from nemo_launcher.checkpoint.stored_tensor import pointer_problem, shown
from nemo_launcher.checkpoint.stored_values import stored_values
from nemo_launcher.checkpoint.tensors import read_weight_file
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import load_json, reading

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_AGAIN = "copy the folder again"
_OTHER = "give the path of a folder that PEFT or AdapterHub wrote"


def is_peft_folder(folder: Path) -> bool:
    """Return whether a path is a folder with PEFT's configuration."""
    return (folder / CONFIG).is_file()


def read_peft_config(folder: Path) -> dict[str, object]:
    """Return the content of adapter_config.json. Raises UserError if it is absent or malformed."""
    with reading(folder):
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "no such folder"
            raise UserError(Problem(str(folder), what, f"give the path of a folder with {CONFIG} and {WEIGHTS}"))
        path = folder / CONFIG
        if not path.exists():
            raise UserError(Problem(str(folder), f"holds no {CONFIG}", _OTHER))
        problem = pointer_problem(path)
        if problem is not None:
            raise UserError(problem)
        value = load_json(path)
    if not isinstance(value, dict):
        raise UserError(Problem(str(path), f"is {json_kind(value)}, not an object", _AGAIN))
    return value


def read_peft_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors by their names in the base, such as `lm_head.lora_A.weight`, mapped from the file.

    Nothing in the files is executed. Raises UserError if they are absent or damaged, or have other names.
    """
    with reading(folder):
        path = next((folder / name for name in (WEIGHTS, PICKLE) if (folder / name).exists()), None)
        if path is None:
            raise UserError(Problem(str(folder), f"holds neither {WEIGHTS} nor {PICKLE}", _AGAIN))
        problem = pointer_problem(path)
        if problem is not None:
            raise UserError(problem)
        stored: Mapping[str, object]
        if path.name == PICKLE:
            stored = read_weight_file(path)
        else:
            stored = {name: stored_values(tensor) for name, tensor in read_header(path).items()}
    problems, tensors = [], {}
    for name, value in stored.items():
        if not name.startswith(_PREFIX) or not isinstance(value, Tensor):
            what = f"does not start with {_PREFIX}" if isinstance(value, Tensor) else "is not a tensor"
            problems.append(Problem(f"{path}: {shown(name)}", what, "use an adapter that PEFT's save_pretrained wrote"))
        else:
            tensors[name.removeprefix(_PREFIX)] = value
    if problems:
        raise UserError(problems[:10])
    if not tensors:
        raise UserError(Problem(str(path), "holds no tensors", _AGAIN))
    return tensors


def write_peft_folder(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write both files into an empty folder. tensors: by their names in the base."""
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    own = {f"{_PREFIX}{name}": tensor.clone().contiguous() for name, tensor in tensors.items()}  # no shared memory
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
