# SPDX-License-Identifier: Apache-2.0
"""Memory and seconds of a conversion: `python benchmarks/conversion.py --json FILE.json [--gigabytes 1.5]`.

Makes a random Llama of about that size in bfloat16 and several parts, and converts it in a process of its own, with the
comparison. `peak` is the largest resident memory of that process, mapped files included, and `shard` the largest part.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_launcher.files.atomic import write_json

HIDDEN, FFN, VOCABULARY = 2048, 5632, 32000
"""Sizes of TinyLlama-1.1B; only the number of layers changes."""
_LAYER = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN
MB = 1e6


def make(folder: Path, gigabytes: float, shard: str) -> None:
    """Save a random model and the tokenizer of the tests."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.engine import save_tokenizer

    layers = max(round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * HIDDEN) / _LAYER), 1)
    save_tokenizer(folder)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size=shard)


def convert(folder: Path, target: Path) -> None:
    """Convert the model, and print what it took as JSON."""
    from nemo_launcher.conversion.convert import convert

    start = time.perf_counter()
    convert(folder, target)
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    print(json.dumps({"seconds": seconds, "peak": int(peak[1]) * 1024}))


def main() -> None:
    """Make the model, convert it, and write and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.5, help="of the folder")
    parser.add_argument("--shard", default="500MB", help="largest size of a part")
    parser.add_argument("--convert", nargs=2, type=Path, metavar=("FOLDER", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        convert(*options.convert)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "hf")
        make(folder, options.gigabytes, options.shard)
        parts = [path.stat().st_size for path in folder.glob("*.safetensors")]
        command = [sys.executable, __file__, "--convert", str(folder), str(Path(place, "base.nemo"))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = {"folder": sum(parts), "shard": max(parts)} | json.loads(done.stdout.splitlines()[-1])
    if options.json:
        write_json(options.json, found)
    sizes = ", ".join(f"{name} {found[name] / MB:,.0f} MB" for name in ("folder", "shard", "peak"))
    print(f"{sizes}; {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
