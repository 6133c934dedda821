# SPDX-License-Identifier: Apache-2.0
"""GPUs as torch sees them: why it can use none, and what this process's own GPU cannot do."""

from __future__ import annotations

import os
import re

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.runtime.gpu_devices import VISIBLE, num_gpus

LEAST_FOR_BF16 = (8, 0)
"""The first compute capability with bf16: Ampere's."""
_TOO_OLD = re.compile(r"driver on your system is too old \(found version (\d+)\)")
_CODE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")


def none_usable() -> tuple[str, str]:
    """Return why torch can use no GPU here, and what to do about it ("" if the machine has none)."""
    import torch

    if num_gpus({}) == 0:
        return "this machine has no GPU", ""
    if num_gpus() == 0:
        return f"{VISIBLE}={os.environ[VISIBLE]!r} hides the GPUs of this machine", f"unset {VISIBLE}"
    version, cuda = torch.__version__, torch.version.cuda
    if cuda is None and torch.version.hip is None:
        return f"torch {version} is built for CPUs alone", "install a build of torch for CUDA (https://pytorch.org)"
    try:
        torch.cuda.init()
        text = "it finds none"
    except (RuntimeError, AssertionError) as error:
        text = str(error).partition("\n")[0]
    found = _TOO_OLD.search(text)
    if found is None:
        return f"torch {version} can use no GPU here: {text}", "check nvidia-smi in the environment of the job"
    newest = f"CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"
    what = f"the NVIDIA driver of this machine supports {newest}, and torch {version} is built for CUDA {cuda}"
    return what, f"install a build of torch for {newest} or older (https://pytorch.org), or a newer driver"


def gpu_number() -> int:
    """Return the number of this process's GPU. Raises UserError if the node has fewer GPUs than processes."""
    import torch

    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        # the first process without one, so that all say the same
        what = f"process {count + 1} of this node has no GPU: it can use {count}"
        raise UserError(Problem("trainer.devices", what, f"trainer.devices={count}, or a job with more GPUs"))
    return number


def check_gpu() -> None:
    """Raise UserError if this process has no GPU of its own, or one that torch has no code for."""
    import torch

    number = gpu_number()
    codes = [match for match in map(_CODE.fullmatch, torch.cuda.get_arch_list()) if match]
    if not codes:  # ROCm
        return
    own = torch.cuda.get_device_capability(number)
    for kind, major, minor in (match.groups() for match in codes):
        made_for = int(major), int(minor)
        # machine code runs on later minor versions of its major one, PTX (compute_) on all later versions
        if made_for <= own and (kind == "compute" or made_for[0] == own[0]):
            return
    name, built = torch.cuda.get_device_name(number), ", ".join(match[0] for match in codes)
    what = f"torch {torch.__version__} has no code for {name}, of compute capability {own[0]}.{own[1]}, but for {built}"
    fix = "install a build of torch for this GPU (https://pytorch.org), or trainer.accelerator=cpu"
    raise UserError(Problem("trainer.accelerator", what, fix))


def check_bf16(where: str) -> None:
    """Raise UserError if this process's GPU does not compute bf16; where: the key or option that asks for it."""
    import torch

    own = torch.cuda.get_device_capability(gpu_number())
    if torch.version.cuda is not None and own < LEAST_FOR_BF16:
        name = torch.cuda.get_device_name(gpu_number())
        what = f"is bf16, which {name} does not compute (compute capability {own[0]}.{own[1]}, and bf16 needs 8.0)"
        raise UserError(Problem(where, what, "use precision 16 or 32"))
