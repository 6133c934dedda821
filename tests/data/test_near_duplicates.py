# SPDX-License-Identifier: Apache-2.0
"""Nearly equal samples are those of a comparison of all pairs."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from nemo_launcher.config.near_duplicates import near_duplicate_problems
from nemo_launcher.data.common_samples import common_samples
from nemo_launcher.data.near_duplicates import RUN, NearDuplicates, Similar, runs_of, similarity
from nemo_launcher.families.gpt.prompts import GPTSample
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(1)


def tokens(length: int = 100) -> np.ndarray:
    return RANDOM.integers(0, 50_000, length).astype(np.int32)


def changed(sample: np.ndarray, count: int) -> np.ndarray:
    """Return a copy with other tokens at the last `count` places."""
    return np.concatenate([sample[: len(sample) - count], tokens(count)])


def as_sample(sample: np.ndarray, source: str) -> GPTSample:
    return GPTSample(sample.tolist(), 0, {}, source)


def test_the_similarity_is_the_jaccard_index_of_runs_of_tokens() -> None:
    first = tokens()
    second = changed(first, 20)
    sets = [{tuple(sample[n : n + RUN]) for n in range(len(sample) - RUN + 1)} for sample in (first, second)]
    wanted = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert similarity(runs_of(first), runs_of(second)) == pytest.approx(wanted)
    assert similarity(runs_of(first[:3]), runs_of(first[:3])) == 1.0
    assert len(runs_of([])) <= 1


def test_samples_above_the_threshold_are_found_and_no_others() -> None:
    pytest.importorskip("datasketch")
    kinds = [tokens() for _ in range(50)]
    near = [changed(kind, 2) for kind in kinds]  # 0.96
    far = [changed(kind, 20) for kind in kinds]  # 0.66
    known = NearDuplicates(0.9)
    assert known.added([*kinds, *far, *near, *kinds]) == [Similar(100 + n, n) for n in range(50)]
    others = [tokens(), *near, *kinds[:1]]
    assert list(known.common(others)) == [*(Similar(1 + n, n) for n in range(50)), Similar(51, 0)]


def test_a_job_tells_them_with_an_example() -> None:
    pytest.importorskip("datasketch")
    first = tokens()
    train = [as_sample(first, "a:1"), as_sample(tokens(), "a:2"), as_sample(changed(first, 1), "a:3")]
    validation = [as_sample(changed(first, 2), "b:1"), as_sample(tokens(), "b:2")]
    assert common_samples(train, validation) == []
    assert common_samples(train, validation, 0.9) == [
        "1 of 3 training samples nearly equal an earlier one, such as a:3 and a:1 (near_duplicates: 0.9)",
        "1 of 2 validation samples equal or nearly equal a training sample, such as b:1 and a:1 (near_duplicates: 0.9)",
    ]


def test_without_the_option_the_library_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    folder = tmp_path_factory.mktemp("job")
    data = loaded(job_config(folder / "base.nemo", folder, folder)).section.model.data
    assert near_duplicate_problems(data) == []
