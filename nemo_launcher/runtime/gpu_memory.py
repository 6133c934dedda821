# SPDX-License-Identifier: Apache-2.0
"""The memory of a GPU: what fits, and the errors with which it runs out."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line

_TEXTS = re.compile(r"CUDA (driver )?error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|CUDA out of memory")
"""cuBLAS and cuDNN allocate outside of torch, which reports their errors as a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of a GPU has run out."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _TEXTS.search(str(error)) is not None
    )


def out_of_memory_message(error: BaseException, fix: str) -> str | None:
    """Return a message for an error that says that the memory of a GPU has run out; None for any other error.

    fix: which setting to change.
    """
    if "torch" not in sys.modules or not is_out_of_memory(error):
        return None
    others = "or use a GPU with more memory; nvidia-smi lists other programs on it"
    return f"the memory of the GPU ran out: {first_line(error)}\n    -> {fix}, {others}"


def free_cached() -> None:
    """Return the memory that torch keeps for itself to the GPU. Errors that hold tensors must be gone."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def gpu_size() -> str:
    """Return the memory of this process's GPU in words."""
    import torch

    if not torch.cuda.is_available():  # a test
        return "the GPU's memory"
    return f"the GPU's {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"


def free_bytes() -> int:
    """Return the memory of this process's GPU that nothing uses, with what torch keeps for later allocations."""
    import torch

    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + kept


def peak_of(function: Callable[[], object]) -> int:
    """Return the most bytes that torch allocates on the GPU while the function runs, beyond those before."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def check_weights(needed: int, where: str) -> None:
    """Raise UserError if the weights of this process do not fit into its GPU. needed: bytes; where: the base."""
    import torch

    free, total = torch.cuda.mem_get_info()
    if needed <= free:
        return
    sizes = [f"{size / 2**30:.1f} GiB" for size in (needed, total, free)]
    what = f"needs {sizes[0]} for its weights on each GPU, which has {sizes[1]}, of which {sizes[2]} are free"
    fix = "use trainer.precision=bf16, or share the model among more GPUs (tensor_model_parallel_size, trainer.devices)"
    if needed <= total:
        fix = f"end the other programs on the GPU (nvidia-smi lists them), or {fix}"
    raise UserError(Problem(where, what, fix))
