"""A base's fingerprint: which model an adapter belongs to, whatever file, layout or parallel size it comes in."""

from __future__ import annotations

import hashlib

import torch

from nemo_launcher.checkpoint.sharding import StoredWeights

# Of each weight this many numbers are looked at. Those of its first row lie in the first rank's file in every layout;
# a model that was trained on differs there, and nothing but a few pages of each weight has to be read.
NUMBERS = 8


def fingerprint(weights: StoredWeights) -> str:
    """Return `sha256:` and 32 hexadecimal digits over names, and the first numbers of all weights rounded to bf16.

    The rounding makes a base and its bf16 copy the same base. The number of rows of an embedding is left out: Megatron
    pads it differently for each tensor-parallel size.
    """
    digest = hashlib.sha256()
    for name in sorted(weights.names):
        if name == "output_layer.weight" and "embedding.word_embeddings.weight" in weights.names:
            continue  # a tied head, which only some layouts store
        numbers = weights.first_numbers(name, NUMBERS).to(torch.bfloat16).view(torch.int16)
        digest.update(name.encode())
        digest.update(numbers.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
