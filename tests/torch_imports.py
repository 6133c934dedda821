# SPDX-License-Identifier: Apache-2.0
"""What the installed torch imports of its compiler by itself, which nothing can put off."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

COMPILER = ("torch._dynamo.symbolic_convert", "torch._inductor")


@cache
def compiler_imported_with_fsdp() -> list[str]:
    """Return the parts of COMPILER that come with torch.distributed.fsdp, which megatron-core imports.

    torch 2.6 brings both, torch 2.11 and later none.
    """
    code = f"import sys, torch.distributed.fsdp; print(*[name for name in {COMPILER!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()
