# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of torch that the package depends on."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.torch_imports import COMPILER, compiler_imported_with_fsdp
from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


def fresh(code: str) -> str:
    """Run code in a process without imports; return its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@leans_on("nemo_launcher/megatron/frozen_linear.py", "_apply", "_parameters")
def test_a_module_moves_the_parameters_of_its_dictionary() -> None:
    """A packed weight is excluded from `.to()` and similar calls: _apply uses _parameters."""
    assert list(inspect.signature(nn.Module._apply).parameters)[:3] == ["self", "fn", "recurse"]
    module = nn.Linear(2, 3)
    weight = module._parameters.pop("weight")
    module.double()
    assert (weight.dtype, module.bias.dtype) == (torch.float32, torch.float64)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@leans_on(
    "nemo_launcher/megatron/packed_weight.py",
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_is_mkldnn_bf16_supported",
)
def test_onednns_operators_multiply_with_a_packed_weight() -> None:
    """Products with frozen weights in oneDNN's layout; packed_weight does without them if they are missing."""
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((5, 8), (6, 8), (6,)))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 256)
    torch.testing.assert_close(packed.to_dense(), weight, rtol=0, atol=0)
    for given in (weight, packed):
        product = torch.ops.mkldnn._linear_pointwise(x, given, bias, "none", [], "")
        torch.testing.assert_close(product, nn.functional.linear(x, weight, bias))


@leans_on("nemo_launcher/megatron/flex_attention.py", "_dynamo", "config =")
def test_the_compiler_has_a_limit_of_kernels_that_can_be_raised() -> None:
    """Beyond it FlexAttention would run uncompiled and keep all scores of a row. torch 2.6 uses an older name."""
    name = "cache_size_limit" if torch.__version__.startswith("2.6.") else "recompile_limit"
    code = f"""
from nemo_launcher.megatron.flex_attention import _kernel
_kernel()
from torch._dynamo import config
raised = config.{name}
config.{name} = 65
print(raised, config.{name})
"""
    assert fresh(code) == "64 65"


@leans_on("nemo_launcher/runtime/startup.py", "torch.compile =")
def test_megatron_core_decorates_with_torch_compile_when_it_is_imported() -> None:
    """Each decorator imports the compiler; when deferred, the fused kernels are plain functions that nothing calls."""
    code = f"""
import sys, torch
before = torch.compile
from nemo_launcher.runtime.startup import quick_imports
with quick_imports():
    import megatron.core.fusions.fused_bias_gelu
    from megatron.core.jit import jit_fuser
assert torch.compile is before
print([name for name in {COMPILER!r} if name in sys.modules], jit_fuser(len) is len)
"""
    assert fresh(code) == f"{compiler_imported_with_fsdp()} True"


def test_torch_leaves_its_compiler_alone_until_it_is_asked_for() -> None:
    """In torch 2.6 torch.distributed.fsdp imports the compiler, so a job's start takes longer."""
    assert compiler_imported_with_fsdp() == (list(COMPILER) if torch.__version__.startswith("2.6.") else [])


def test_what_is_put_off_has_the_names_that_stand_in_for_it() -> None:
    """runtime.startup provides them while the compiler is not imported."""
    code = """
import torch._dynamo as compiler
print(callable(compiler.disable), callable(compiler.graph_break), callable(compiler.trace_rules.clear_lru_cache),
      isinstance(compiler.OptimizedModule, type))
"""
    assert fresh(code) == "True True True True"


def test_recomputation_works_inside_autograd_grad() -> None:
    """torch.utils.checkpoint, non-reentrant: concurrent micro-batches compute gradients with autograd.grad."""
    from torch.utils.checkpoint import checkpoint

    calls: list[int] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x.sin().exp()

    x = torch.ones(3, requires_grad=True)
    output = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    (found,) = torch.autograd.grad(output.sum(), x)
    assert len(calls) == 2
    torch.testing.assert_close(found, x.detach().cos() * x.detach().sin().exp())


@leans_on("nemo_launcher/runtime/precision.py", "torch.backends.cuda.matmul.allow_tf32 =")
def test_tf32_is_off_until_it_is_allowed_and_can_be_allowed() -> None:
    code = """
import torch
from nemo_launcher.runtime.precision import allow_tf32
before = torch.get_float32_matmul_precision()
allow_tf32(True)
print(before, torch.get_float32_matmul_precision())
"""
    assert fresh(code) == "highest high"
