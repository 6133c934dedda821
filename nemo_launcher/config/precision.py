# SPDX-License-Identifier: Apache-2.0
"""The table of precisions: names, types of the frozen base model, and names in other programs.

Adapters and optimizer state are always fp32. runtime.precision converts a name into a torch.dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from nemo_launcher.config.constraints import Meant

PRECISIONS: dict[str | int, str] = {
    16: "float16",
    32: "float32",
    "16": "float16",
    "32": "float32",
    "bf16": "bfloat16",
    "16-mixed": "float16",
    "bf16-mixed": "bfloat16",
    "32-true": "float32",
    "bf16-true": "bfloat16",
}
"""Maps `trainer.precision` to torch's name for the type of the frozen weights and the activations."""

STORED_PRECISIONS: dict[str, str | int] = {"float16": 16, "float32": 32, "bfloat16": "bf16"}
"""Maps torch's name for the type of stored weights to the value of `model.precision`."""

PRECISION_ALIASES = (
    *((word, 16) for word in ("fp16", "float16", "f16", "half", "16-true", "fp16-mixed")),
    *((word, 32) for word in ("fp32", "float32", "f32", "full", "single", "float", "fp32-true", "32-mixed")),
    *((word, "bf16") for word in ("bfloat16", "bfp16", "bfloat", "bf-16", "brain")),
)

if TYPE_CHECKING:
    PrecisionName = str | int
    StoredPrecisionName = str | int
else:
    PrecisionName = Literal[tuple(PRECISIONS)]
    StoredPrecisionName = Literal[tuple(name for name in PRECISIONS if name in (16, 32, "16", "32", "bf16"))]
Precision = Annotated[PrecisionName, Meant(PRECISION_ALIASES)]
StoredPrecision = Annotated[StoredPrecisionName, Meant(PRECISION_ALIASES)]
