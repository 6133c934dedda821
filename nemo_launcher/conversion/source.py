# SPDX-License-Identifier: Apache-2.0
"""Open a model to be converted: its configuration, and its tensors by Hugging Face names, which are read on demand.

The files must have exactly the tensors of the architecture; otherwise opening fails and names the differences.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_launcher.checkpoint.architectures.multimodal import MultiModal
from nemo_launcher.checkpoint.architectures.t5 import scales_output
from nemo_launcher.checkpoint.gguf_architectures import Form
from nemo_launcher.checkpoint.gguf_file import BLOCKS, NUMBERS
from nemo_launcher.checkpoint.gguf_model import GGUFModel, read_model
from nemo_launcher.checkpoint.hf_architectures import DTYPES, architecture_of, model_type
from nemo_launcher.checkpoint.hf_folder import CONFIG, HARMLESS, SCALE, HFFolder, read_folder, scale_block
from nemo_launcher.checkpoint.language_model import language_names, left_out_text
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, shown
from nemo_launcher.checkpoint.stored_values import TYPES, stored_values
from nemo_launcher.checkpoint.tensors import StateDict, read_weight_file
from nemo_launcher.conversion.source_names import Names, match_names
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.hf_classes import read_configuration
from nemo_launcher.files.foreign import reading
from nemo_launcher.files.mapped import map_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


_RUNNING = (
    *("_attn_implementation", "attn_implementation", "use_cache", "return_dict"),
    *("output_attentions", "output_hidden_states"),
)
"""Keys that change how transformers runs a model but not what it computes."""


class SourceTensors(Mapping[str, Tensor]):
    """The tensors of a source by Hugging Face name, converted to one type; each access reads the file again.

    Raises UserError for a tensor with values that are not finite. read_names: the names of all tensors read so far;
    num_values: the number of values in all stored tensors.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        dtype: torch.dtype,
        source: Path,
    ) -> None:
        self._names, self._read, self.dtype, self._source = names, read, dtype, source
        self.num_values = sum(math.prod(shapes[stored]) for stored in set(names.values()))
        self.read_names: set[str] = set()
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names[name]
        with reading(f"{self._source}: {shown(stored)}"):
            tensor = self._read(stored).to(self.dtype)
        self.read_names.add(name)
        if stored not in self._checked:
            wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
            if wrong:
                what = f"{wrong:,} of {tensor.numel():,} numbers are not finite (NaN or infinity)"
                raise UserError(Problem(f"{self._source}: {shown(stored)}", what, "use an intact copy of the model"))
            self._checked.add(stored)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source model."""

    path: Path
    """The folder or file."""
    config: PretrainedConfig
    """The configuration as a transformers object."""
    kind: str
    """The configuration's `model_type`."""
    tensors: SourceTensors
    """The tensors by name."""
    origin: HFFolder | GGUFModel
    """The model as read without torch."""

    @property
    def whole(self) -> MultiModal | None:
        """The multi-modal model that it is the language model of."""
        return self.origin.whole if isinstance(self.origin, HFFolder) else None


def open_source(path: Path, *, language_model: bool = False) -> Source:
    """Open a Hugging Face folder or a .gguf file. Raises UserError with everything that prevents its conversion.

    language_model: whether the language model of a multi-modal model is asked for; what is left out is printed.
    """
    origin: HFFolder | GGUFModel = (
        read_folder(path, language_model=language_model) if path.is_dir() else read_model(path)
    )
    kind = model_type(origin.config)
    config = _configuration(origin, path / CONFIG if path.is_dir() else path)
    dtype = _dtype(origin)
    left_out: dict[str, tuple[int, ...]] = {}
    if isinstance(origin, GGUFModel):
        shapes = {
            name: tensor.shape[::-1] if origin.forms[name] is Form.TRANSPOSED else tensor.shape
            for name, tensor in origin.tensors.items()
        }
        read: Callable[[str], Tensor] = partial(_read_gguf, origin, config)
    elif origin.pickles:
        parts, left_out = _pickled(origin)
        shapes = {name: tensor.shape for name, tensor in parts.items()}
        read = partial(_read_pickled, functools.lru_cache(maxsize=1)(read_weight_file), parts)
    else:
        scales = {f"{name}{SCALE}" for name, tensor in origin.tensors.items() if tensor.kind == "F8_E4M3"}
        shapes = {name: tensor.shape for name, tensor in origin.tensors.items() if name not in scales}
        read = partial(_read_safetensors, origin, dtype)
        left_out = {name: tensor.shape for name, tensor in origin.left_out.items()}
    names: Names = match_names(config, architecture_of(origin.config), shapes, path)
    tensors = SourceTensors(names.stored, shapes, read, dtype, path)
    names.check_tied(tensors, path)
    tensors.read_names = set(names.tied)  # tied tensors were compared, so nothing is lost
    opened = Source(path, config, kind, tensors, origin)
    if opened.whole is not None:
        print(f"{path}: the language model of {opened.whole.name} is taken {left_out_text(left_out)}", flush=True)
    return opened


def _configuration(origin: HFFolder | GGUFModel, path: Path) -> PretrainedConfig:
    """Return transformers' configuration object; only the configuration class is instantiated."""
    values = {key: value for key, value in origin.config.items() if key not in _RUNNING}
    with reading(path, "correct config.json, or copy it again"):
        config = read_configuration(architecture_of(origin.config), values, str(path))
    if config.is_encoder_decoder:
        config.scale_decoder_outputs = scales_output(origin.config)
    return config


def _dtype(origin: HFFolder | GGUFModel) -> torch.dtype:
    """Return the type of the weights: that in the configuration, or else that of the first tensor."""
    named = origin.config.get("dtype", origin.config.get("torch_dtype"))
    if named is not None:
        return _DTYPES[str(named).removeprefix("torch.")]
    kinds = [tensor.kind for tensor in origin.tensors.values() if tensor.kind in DTYPES.values()]
    return TYPES[kinds[0]] if kinds else torch.float32


# --- safetensors --------------------------------------------------------------------------------------------------


def _bytes_of(tensor: StoredTensor) -> NDArray[np.uint8]:
    """Return a tensor's bytes, mapped copy-on-write because torch requires writable memory."""
    return map_bytes(tensor.path, tensor.offset, tensor.num_bytes)


def _read_safetensors(folder: HFFolder, dtype: torch.dtype, name: str) -> Tensor:
    tensor = folder.tensors[name]
    weight = stored_values(tensor)
    if tensor.kind != "F8_E4M3":
        return weight
    scales = stored_values(folder.tensors[f"{name}{SCALE}"])
    rows, columns = scale_block(folder.config)
    blocks = (-(-weight.size(0) // rows), -(-weight.size(1) // columns)) if weight.dim() == 2 else ()
    if tuple(scales.shape) != blocks:
        what = f"its scales have shape {tuple(scales.shape)}, but blocks of {rows} x {columns} need {blocks}"
        raise UserError(Problem(f"{tensor.path}: {name}", what, "copy or download it again"))
    scales = scales.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return (weight.float() * scales[: weight.size(0), : weight.size(1)]).to(dtype)


# --- pytorch_model.bin --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pickled:
    """A tensor of pytorch_model.bin or of one of its parts."""

    path: Path
    """The file."""
    name: str
    """Its name there."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: torch.dtype
    """Its type."""


def _pickled(folder: HFFolder) -> tuple[dict[str, _Pickled], dict[str, tuple[int, ...]]]:
    """Return the tensors of pytorch_model.bin or its parts, and the shapes of those left out; nothing is executed."""
    found: dict[str, _Pickled] = {}
    for path in folder.pickles:
        for name, tensor in read_weight_file(path).items():
            if name in found:
                raise UserError(Problem(f"{path}: {name}", "is in several parts", "download them again"))
            if not isinstance(tensor, Tensor):
                raise UserError(Problem(f"{path}: {name}", "is not a tensor", "use model.safetensors"))
            found[name] = _Pickled(path, name, tuple(tensor.shape), tensor.dtype)
    names = {name: name for name in found}
    if folder.whole is not None:
        names = language_names(found, folder.whole, folder.path)
    for name in names:
        if found[name].dtype not in _DTYPES.values() and HARMLESS.fullmatch(name) is None:
            what = f"has the unsupported type {str(found[name].dtype).removeprefix('torch.')}"
            fix = "use the model's folder in float32, bfloat16 or float16"
            raise UserError(Problem(f"{found[name].path}: {shown(name)}", what, fix))
    left_out = {name: tensor.shape for name, tensor in found.items() if name not in names}
    return {ours: found[name] for name, ours in names.items()}, left_out


def _read_pickled(read_file: Callable[[Path], StateDict], tensors: Mapping[str, _Pickled], name: str) -> Tensor:
    """Return a memory-mapped tensor. read_file: keeps the last part, so that earlier ones leave memory."""
    stored = tensors[name]
    tensor = read_file(stored.path)[stored.name]
    assert isinstance(tensor, Tensor)
    return tensor


# --- GGUF ---------------------------------------------------------------------------------------------------------


def _read_gguf(model: GGUFModel, config: PretrainedConfig, name: str) -> Tensor:
    """Return a tensor in float32, in Hugging Face's layout."""
    from gguf import GGMLQuantizationType, dequantize

    tensor = model.tensors[name]
    _, block, block_bytes = BLOCKS[NUMBERS[tensor.kind]]
    rows = _bytes_of(tensor).reshape(*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # damaged blocks overflow and are refused later
        warnings.simplefilter("ignore")
        weight = torch.from_numpy(np.array(dequantize(rows, GGMLQuantizationType[tensor.kind]), dtype=np.float32))
    match model.forms[name]:
        case Form.TRANSPOSED:
            return weight.t()
        case Form.PAIRS:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        case Form.PLUS_ONE:
            return weight - 1
        case Form.SAME:
            return weight
