# SPDX-License-Identifier: Apache-2.0
"""The values of a tensor in a safetensors file, mapped from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nemo_launcher.checkpoint.stored_tensor import StoredTensor, shown
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.mapped import map_bytes

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""The format's names of the types that are read."""


def stored_values(tensor: StoredTensor) -> Tensor:
    """Return a tensor in the type of the file, mapped copy-on-write because torch requires writable memory.

    Raises UserError for another type than those of TYPES.
    """
    if tensor.kind not in TYPES:
        fix = "use weights in float32, bfloat16 or float16"
        raise UserError(Problem(str(tensor.path), f"has a tensor of the unsupported type {shown(tensor.kind)}", fix))
    if not tensor.num_bytes:
        return torch.empty(tensor.shape, dtype=TYPES[tensor.kind])
    content = map_bytes(tensor.path, tensor.offset, tensor.num_bytes)
    if tensor.offset % 8:
        content = np.array(content)  # torch requires alignment to the element size
    return torch.from_numpy(content).view(TYPES[tensor.kind]).reshape(tensor.shape)
