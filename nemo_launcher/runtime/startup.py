# SPDX-License-Identifier: Apache-2.0
"""Starting a job's process without what it never uses.

Of the seconds between `python3` and the first step most go into imports, and half of those into parts of libraries that
this project has no use for: compilers, plots, data frames, loggers that are switched off. They are put off here, and
imported after all when something does ask for them. Measured on one thread: a training of a tiny model takes 3.9
seconds of processor time to its end, and 10.2 with all imports.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from types import SimpleNamespace

from nemo_launcher.runtime.deferred import defer


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Within this block, and for what it has imported, imports leave out what is not used.

    Python's garbage collector rests meanwhile: what is imported stays, and looking for garbage in it again and again
    takes a fifth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        _defer_unused()
        yield
    finally:
        gc.freeze()  # what is imported is not looked through later, either
        if collecting:
            gc.enable()


def _defer_unused() -> None:
    defer("wandb")  # Megatron-core looks whether it is there; Lightning imports it when it is switched on
    defer("pandas")  # nemo_toolkit's tokenizer for molecules reads tables with it
    # torchmetrics gives scipy.signal a window function that it lacks, and wants models for its scores of texts
    defer("scipy.signal", stand_ins={"hamming": None})
    defer("transformers", ["AutoModel", "AutoModelForMaskedLM", "AutoTokenizer"])
    # Nothing is compiled: optimizers ask torch's compiler to leave them alone, Lightning what it may have wrapped.
    defer(
        "torch._dynamo",
        ["OptimizedModule"],
        {
            "disable": _unchanged,
            "graph_break": _nothing,
            "trace_rules": SimpleNamespace(clear_lru_cache=_nothing),  # process groups clear it
        },
    )
    _import_megatron_uncompiled()


def _import_megatron_uncompiled() -> None:
    """Import megatron-core without its decorators by torch.compile, each of which imports the compiler.

    They are on fused kernels, which the frozen models' configuration switches off (families.layer_shape).
    """
    import torch

    compile_ = torch.compile
    vars(torch)["compile"] = _unchanged
    try:
        from megatron.core.jit import disable_jit_fuser
    finally:
        torch.compile = compile_
    disable_jit_fuser()


def _unchanged(function: object = None, *_: object, **__: object) -> object:
    """Decorate nothing, with arguments or without."""
    return function if function is not None else _unchanged


def _nothing() -> None:
    """Do nothing."""
