# SPDX-License-Identifier: Apache-2.0
"""Stop training at the first value that is not finite, before it is written anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nemo_launcher.errors import Problem, UserError

_FIX = (
    "try a lower model.optim.lr, trainer.precision=bf16 or 32 instead of 16, and check the base: "
    "nemo-launcher inspect <base>"
)
DescribeSaved = Callable[[], str]
"""Returns a text about what training has saved; called when training stops."""


def check_step(step: int, loss: Tensor, gradient_norm: Tensor, describe_saved: DescribeSaved) -> None:
    """Raise UserError if the loss of a step or its gradient norm is not finite. Synchronizes with the device once."""
    if bool(torch.isfinite(loss) & torch.isfinite(gradient_norm)):
        return
    what = f"the loss is {float(loss)}" if not math.isfinite(loss) else f"the gradient norm is {float(gradient_norm)}"
    raise _stop_error(step, what, describe_saved)


def check_validation(step: int, loss: float, describe_saved: DescribeSaved) -> None:
    """Raise UserError if a validation loss is not finite."""
    if not math.isfinite(loss):
        raise _stop_error(step, f"the validation loss is {loss}", describe_saved)


def check_weights(step: int, state: Mapping[str, Mapping[str, Tensor]], describe_saved: DescribeSaved) -> None:
    """Raise UserError if any adapter weight is not finite."""
    tensors = [tensor for adapter in state.values() for tensor in adapter.values()]
    if tensors and bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()):
        return
    for key, adapter in state.items():
        for name, tensor in adapter.items():
            if not bool(torch.isfinite(tensor).all()):
                raise _stop_error(step, f"the adapter's weight {key}.{name} is not finite", describe_saved)


def overflow(step: int, describe_saved: DescribeSaved) -> UserError:
    """Return the error for fp16 gradients that overflow at the smallest loss scale."""
    return _stop_error(step, "fp16 gradients overflow even without loss scaling", describe_saved)


def _stop_error(step: int, what: str, describe_saved: DescribeSaved) -> UserError:
    return UserError(Problem(f"training, step {step}", f"{what}; training stops, {describe_saved()}", _FIX))
