# SPDX-License-Identifier: Apache-2.0
"""The rows that fit into the free memory of a GPU, measured with two rows of random tokens after one that compiles.

Where attention is one kernel a row (FlexAttention), what a row keeps for its backward pass grows with its tokens,
whatever the method and the layers that recompute. So two peaks give the bytes of a token; training.fitting cuts rows
that need more than expected. Other kernels of attention keep masks that grow with the square of a group's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemo_launcher.adapters.settings import OPTIMIZER_BYTES
from nemo_launcher.families.base import Base
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention import is_one_kernel_a_row
from nemo_launcher.megatron.sizes import LOGIT_BYTES, MAX_LOGITS
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.gpu_memory import free_bytes, free_cached, peak_of
from nemo_launcher.training.fitting import DoesNotFitError
from nemo_launcher.training.random_rows import cleared_gradients, random_row, run_rows

_LENGTHS = (512, 1024, 2048)  # tokens of the rows; the first compiles kernels and allocates gradients
_SAMPLE_TOKENS, _ANSWER_TOKENS = 128, 8
_ROUNDED_TO = 1024
_MASK_BYTES = 4  # of each pair of tokens: torch makes FlexAttention's whole mask before it compresses it
_USED_SHARE = 0.8  # of the memory: real rows have prefixes, answers and allocations of other sizes


@dataclass(frozen=True, slots=True)
class _Peaks:
    """The most memory that two rows have allocated."""

    tokens: tuple[int, int]
    """Their tokens, ascending."""
    allocated: tuple[int, int]
    """Bytes beyond what was allocated before."""

    def fitting(self, available: float) -> int | None:
        """Return the tokens of the largest row for `available` bytes; None if the peaks do not grow with the tokens.

        The number is rounded down, so that a few bytes less do not change the rows of the next training.
        """
        slope = (self.allocated[1] - self.allocated[0]) / (self.tokens[1] - self.tokens[0])
        if slope <= 0:
            return None
        fixed = max(0.0, self.allocated[0] - slope * self.tokens[0])
        left = max(0.0, available - fixed)
        # slope * tokens + _MASK_BYTES * tokens**2 = left
        tokens = max(1, int((math.sqrt(slope**2 + 4 * _MASK_BYTES * left) - slope) / (2 * _MASK_BYTES)))
        return tokens - tokens % _ROUNDED_TO if tokens > _ROUNDED_TO else tokens


def fills_rows(base: Base) -> bool:
    """Return whether rows are as long as fits: on a GPU that has the whole model, whose attention keeps no masks."""
    is_whole = parallel.tensor_size() * parallel.pipeline_size() == 1
    return base.device.type != "cpu" and is_whole and is_one_kernel_a_row(base.model)


def fitting_tokens(base: Base) -> int | None:
    """Return about how many tokens of a row fit into the GPU of every rank; None if that cannot be measured.

    All ranks must call this. The adapters' gradients are cleared.
    """
    own = _fitting_here(base) if fills_rows(base) else None
    of_ranks = [tokens for _, tokens in ranks.gather_objects(own)]
    known = [tokens for tokens in of_ranks if tokens is not None]
    return min(known) if len(known) == len(of_ranks) else None


def _fitting_here(base: Base) -> int | None:
    """Return the tokens of a row that fit into this rank's GPU; None if the peaks do not grow with the tokens."""
    parameters = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    with cleared_gradients(parameters):
        found = _peaks(base)
    free_cached()
    trained = sum(parameter.numel() for parameter in parameters)
    reserved = trained * OPTIMIZER_BYTES + MAX_LOGITS * LOGIT_BYTES
    return found if isinstance(found, int) else found.fitting(_USED_SHARE * free_bytes() - reserved)


def _peaks(base: Base) -> _Peaks | int:
    """Return the peaks of two rows; if a row does not fit, the number of tokens of the largest that does, or 1."""
    tokens: list[int] = []
    peaks: list[int] = []
    for length in _LENGTHS:
        row = random_row(base, length, length, sample_tokens=_SAMPLE_TOKENS, answer_tokens=_ANSWER_TOKENS)
        row = row.to(base.device)
        try:
            peaks.append(peak_of(lambda row=row: run_rows(base, [row])))  # type: ignore[misc]
        except DoesNotFitError:
            return max(tokens, default=1)
        tokens.append(row.num_computed_tokens)
    return _Peaks((tokens[1], tokens[2]), (peaks[1], peaks[2]))
