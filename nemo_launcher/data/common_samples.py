# SPDX-License-Identifier: Apache-2.0
"""Equal samples within the training data, and in training and validation data, found by hashes of their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.samples import S

_KEY_BYTES = 16


def common_samples(train: Sequence[S], validation: Sequence[S]) -> list[str]:
    """Return a message for each kind of equal samples; none if all are different."""
    known: set[bytes] = set()
    known.update(_hashes(train))
    repeated = len(train) - len(known)
    common = sum(key in known for key in _hashes(validation))
    found = [f"{repeated:,} of {len(train):,} training samples equal an earlier one"] if repeated else []
    if common:
        found.append(f"{common:,} of {len(validation):,} validation samples are also training samples")
    return [f"{line} (nemo-launcher data FILES lists them)" for line in found]


def _hashes(samples: Sequence[S]) -> Iterator[bytes]:
    if isinstance(samples, SampleCache):
        arrays = samples.token_arrays()
    else:
        ids = ([token for part in sample.parts for token in part.ids] for sample in samples)
        arrays = (np.array(tokens, np.int32) for tokens in ids)
    for array in arrays:
        yield hashlib.blake2b(array.tobytes(), digest_size=_KEY_BYTES).digest()
