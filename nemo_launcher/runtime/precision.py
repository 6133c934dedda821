# SPDX-License-Identifier: Apache-2.0
"""Conversion between precisions (config.precision) and torch dtypes."""

from __future__ import annotations

import torch

from nemo_launcher.config.precision import PRECISION_ALIASES, PRECISIONS, STORED_PRECISIONS
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.runtime import gpus, ranks


def dtype_of(precision: str | int, where: str) -> torch.dtype:
    """Return the dtype of frozen weights and activations. Raises UserError for an unknown precision.

    where: the configuration key, for the error.
    """
    names = {str(name): dtype for name, dtype in PRECISIONS.items()}
    if str(precision) not in names:
        meant = dict(PRECISION_ALIASES).get(str(precision).casefold(), precision)
        fix = did_you_mean(str(precision), names) if meant == precision else f"did you mean {str(meant)!r}?"
        raise UserError(Problem(where, f"unknown precision {precision!r}", fix))
    dtype: torch.dtype = getattr(torch, names[str(precision)])
    return dtype


def computed_dtype(precision: str | int, where: str) -> torch.dtype:
    """Return dtype_of, for a model that this process computes. Raises UserError too if its GPU does not compute it."""
    dtype = dtype_of(precision, where)
    if dtype == torch.bfloat16 and ranks.uses_gpu():
        gpus.check_bf16(where)
    return dtype


def allow_tf32(allowed: bool) -> None:
    """Set whether products in fp32 on a GPU may round their factors to TF32; call before the base is loaded."""
    torch.backends.cuda.matmul.allow_tf32 = allowed


def stored_precision(dtype: torch.dtype) -> str | int:
    """Return the precision that a base with weights of this dtype stores in its configuration."""
    return STORED_PRECISIONS[str(dtype).removeprefix("torch.")]
