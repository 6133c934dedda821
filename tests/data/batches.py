# SPDX-License-Identifier: Apache-2.0
"""Samples whose prompts share paragraphs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nemo_launcher.families.gpt.samples import GPTSample


def paragraphs(sizes: Sequence[int]) -> list[GPTSample]:
    """Return `sizes` questions on each paragraph, all of 40 tokens, with answers of two tokens."""
    generator = random.Random(0)
    samples = []
    for count in sizes:
        context = [generator.randrange(3, 300) for _ in range(30)]
        for _ in range(count):
            samples.append(GPTSample([*context, *(generator.randrange(3, 300) for _ in range(10))], 38, {}, ""))
    return samples
