# SPDX-License-Identifier: Apache-2.0
"""Faster start of a job process, by deferring imports that it does not use.

Most of the time from `python3` to the first step goes into imports, and half of that into parts of libraries that this
project does not use: compilers, plots, data frames, disabled loggers. Their import is deferred until something uses
them. Measured on one thread: a training of a tiny model takes 3.9 seconds of CPU time in all, and 10.2 with all
imports.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from types import SimpleNamespace

from nemo_launcher.requirements import check_libraries, refuse_broken
from nemo_launcher.runtime.deferred import defer


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Defer unused modules while the body imports others, and afterwards.

    Python's garbage collector is disabled meanwhile: imported objects stay alive, and scanning them repeatedly takes a
    fifth of the time. Raises UserError if a library is too old, or if one that nothing here needs is broken.
    """
    check_libraries()
    collecting = gc.isenabled()
    gc.disable()
    try:
        _defer_unused()
        yield
    except Exception as error:
        refuse_broken(error)
        raise
    finally:
        gc.freeze()  # later collections skip the imported objects too
        if collecting:
            gc.enable()


def _defer_unused() -> None:
    defer("wandb")  # Megatron-core checks that it exists; Lightning imports it when enabled
    defer("pandas")  # nemo_toolkit's tokenizer for molecules reads tables with it
    # torchmetrics adds a missing window function to scipy.signal, and imports models for its text metrics.
    defer("scipy.signal", stand_ins={"hamming": None})
    defer("transformers", ["AutoModel", "AutoModelForMaskedLM", "AutoTokenizer"])
    # Nothing is compiled: optimizers exclude themselves from it, and Lightning asks whether a module is compiled.
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
    """Import megatron-core without its torch.compile decorators, each of which would import the compiler.

    They apply to fused kernels, which the frozen models' configuration disables (families.layer_shape).
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
    """Return the function unchanged, used as a decorator with or without arguments."""
    return function if function is not None else _unchanged


def _nothing() -> None:
    """Do nothing."""
