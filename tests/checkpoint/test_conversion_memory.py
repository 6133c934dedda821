# SPDX-License-Identifier: Apache-2.0
"""How much memory a conversion takes, with the comparison: a part of the weights, not all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import save_llama

pytestmark = pytest.mark.integration

MEASURED = """
import re, sys
from pathlib import Path
from nemo_launcher.conversion.convert import convert

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

tiny, big, target = map(Path, sys.argv[1:])
convert(tiny, target / "tiny.nemo")  # loads libraries
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
convert(big, target / "big.nemo")
print(status("VmHWM") - before)
"""
BIG = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 20_000}
SHARD = 40 * 10**6
ONE_LAYER = 160 * 2**20
"""Bytes for a layer and the head in float32 on both sides, and what libraries keep."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("is_pickled", [False, True])
def test_the_peak_is_a_part_of_the_weights(is_pickled: bool, tmp_path: Path) -> None:
    tiny, big = save_llama(tmp_path / "tiny"), save_llama(tmp_path / "big", **BIG)
    size = (big / "model.safetensors").stat().st_size
    in_parts(big, is_pickled=is_pickled)
    target = tmp_path / "bases"
    target.mkdir()
    command = [sys.executable, "-c", MEASURED, str(tiny), str(big), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = int(done.stdout.splitlines()[-1])
    assert peak < SHARD + ONE_LAYER < size


def in_parts(folder: Path, *, is_pickled: bool) -> None:
    """Save the weights of a folder again, in parts of at most SHARD bytes."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, weight in weights.items():
        if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + weight.nbytes > SHARD:
            parts.append({})
        parts[-1][name] = weight
    stem, ending = ("pytorch_model", "bin") if is_pickled else ("model", "safetensors")
    files = {}
    for number, part in enumerate(parts, start=1):
        file = f"{stem}-{number:05}-of-{len(parts):05}.{ending}"
        files |= dict.fromkeys(part, file)
        torch.save(part, folder / file) if is_pickled else save_file(part, folder / file, {"format": "pt"})
    index = f"{stem}.{ending}.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
