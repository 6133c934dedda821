# SPDX-License-Identifier: Apache-2.0
"""`trainer.precision` and what it means for the frozen base. Adapters and optimizer state are fp32 in all of them."""

from __future__ import annotations

import torch

from nemo_launcher.config.sections.common import WORDS_FOR_PRECISION
from nemo_launcher.errors import Problem, UserError, did_you_mean

PRECISIONS: dict[str, torch.dtype] = {
    "32": torch.float32,
    "32-true": torch.float32,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16": torch.float16,
    "16-mixed": torch.float16,
}


def dtype_of(precision: str | int, where: str) -> torch.dtype:
    """Return the type of the frozen weights and the activations; `where` names the key for the UserError."""
    if str(precision) not in PRECISIONS:
        meant = dict(WORDS_FOR_PRECISION).get(str(precision).casefold(), precision)
        fix = did_you_mean(str(precision), PRECISIONS) if meant == precision else f"did you mean {str(meant)!r}?"
        raise UserError(Problem(where, f"unknown precision {precision!r}", fix))
    return PRECISIONS[str(precision)]
