# SPDX-License-Identifier: Apache-2.0
"""Equal and nearly equal samples within the training data, and in training and validation data, by their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.near_duplicates import NearDuplicates
from nemo_launcher.data.prefix_tree import IntArray
from nemo_launcher.data.samples import S, Sample

_KEY_BYTES = 16


def common_samples(train: Sequence[S], validation: Sequence[S], similarity: float | None = None) -> list[str]:
    """Return a message for each kind of equal samples; none if all are different.

    similarity: that of nearly equal samples (near_duplicates), which are told too; None to look for equal ones alone.
    """
    known: set[bytes] = set()
    known.update(_hashes(train))
    repeated = len(train) - len(known)
    common = sum(key in known for key in _hashes(validation))
    found = [f"{repeated:,} of {len(train):,} training samples equal an earlier one"] if repeated else []
    if common:
        found.append(f"{common:,} of {len(validation):,} validation samples are also training samples")
    told = [f"{line} (nemo-launcher data FILES lists them)" for line in found]
    return told if similarity is None else [*told, *_nearly_common(train, validation, similarity)]


def _nearly_common(train: Sequence[S], validation: Sequence[S], similarity: float) -> Iterator[str]:
    """Yield a message for nearly equal samples of the training data, and one for those of the validation data."""
    known = NearDuplicates(similarity)
    of_train = known.added(_arrays(train))
    of_validation = list(known.common(_arrays(validation)))
    where = f"(near_duplicates: {similarity:g})"
    if of_train:
        shown = f"{train[of_train[0].place].source} and {train[of_train[0].earlier].source}"
        count = f"{len(of_train):,} of {len(train):,} training samples"
        yield f"{count} nearly equal an earlier one, such as {shown} {where}"
    if of_validation:
        shown = f"{validation[of_validation[0].place].source} and {train[of_validation[0].earlier].source}"
        count = f"{len(of_validation):,} of {len(validation):,} validation samples"
        yield f"{count} equal or nearly equal a training sample, such as {shown} {where}"


def _hashes(samples: Sequence[S]) -> Iterator[bytes]:
    for array in _arrays(samples):
        yield hashlib.blake2b(array.tobytes(), digest_size=_KEY_BYTES).digest()


def _arrays(samples: Sequence[S]) -> Iterator[IntArray]:
    """Yield all token ids of each sample."""
    if isinstance(samples, SampleCache):
        yield from samples.token_arrays()
    else:
        for sample in samples:
            yield all_tokens(sample)


def all_tokens(sample: Sample) -> IntArray:
    """Return all token ids of a sample."""
    return np.array([token for part in sample.parts for token in part.ids], np.int32)
