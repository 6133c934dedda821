# SPDX-License-Identifier: Apache-2.0
"""Mixtures of tasks: their shares, every sample before any repetition, shared prefixes, resuming at any step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_launcher.config.mixture import mixture_problems
from nemo_launcher.config.sections.learning import Mixture
from nemo_launcher.data.mixture import MixedTasks, samples_per_epoch, task_shares
from nemo_launcher.data.prefix_tree import PrefixOrder, prefix_trees
from nemo_launcher.data.sample_order import PrefixShuffleSampler
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.prompts import GPTSample
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit
SIZES = {"a": 60, "b": 30, "c": 6}
TEMPLATES = [TaskTemplate(taskname=name, prompt_template="{text}") for name in SIZES]


def samples() -> list[GPTSample]:
    """Groups of three samples of a task with a common prefix of 20 tokens."""
    found = []
    for number, name in enumerate(name for name, size in SIZES.items() for _ in range(size)):
        ids = [*range(1000 + number // 3 * 50, 1020 + number // 3 * 50), number]
        found.append(GPTSample(ids, 20, {"taskname": name}, f"data:{number + 1}"))
    return found


def sampler(mixture: Mixture, **options: Any) -> PrefixShuffleSampler:
    mixed = MixedTasks.of(samples(), [], TEMPLATES, mixture)
    defaults = {"shuffle": True, "share_prefix": True, "seed": 3, "global_batch_size": 8}
    return PrefixShuffleSampler(samples(), **defaults | options, mixture=mixed)


def epochs(one: PrefixShuffleSampler, count: int) -> list[list[int]]:
    found = []
    for epoch in range(count):
        one.set_epoch(epoch)
        found.append(list(one))
    return found


def tasks_in(order: list[int]) -> Counter[str]:
    return Counter(str(samples()[index].record["taskname"]) for index in order)


def test_shares_are_those_of_the_paper() -> None:
    sizes = {"a": 1000, "b": 100, "c": 10}
    assert task_shares(sizes, Mixture()) == {name: size / 1110 for name, size in sizes.items()}
    limited = np.array([50.0, 50.0, 10.0])  # r_m = min(e_m, K) / sum
    assert list(task_shares(sizes, Mixture(max_per_task=50)).values()) == pytest.approx(limited / limited.sum())
    heated = np.array([1000.0, 100.0, 10.0]) ** (1 / 2)
    assert list(task_shares(sizes, Mixture(temperature=2.0)).values()) == pytest.approx(heated / heated.sum())
    assert task_shares(sizes, Mixture(weights={"a": 1, "b": 3, "c": 0})) == {"a": 0.25, "b": 0.75, "c": 0}


def test_shares_of_any_finite_weights_add_up_to_one() -> None:
    for weights in ({"a": 1e308, "b": 1e308, "c": 0}, {"a": 5e-324, "b": 5e-324, "c": 0.0}):
        assert task_shares(SIZES, Mixture(weights=weights)) == {"a": 0.5, "b": 0.5, "c": 0}


@pytest.mark.parametrize("total", [1, 7, 96, 1001])
def test_counts_are_the_shares_as_exactly_as_whole_numbers_can(total: int) -> None:
    shares = task_shares(SIZES, Mixture(temperature=3.0))
    counts = samples_per_epoch(shares, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - shares[name] * total) < 1 for name in SIZES)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_each_epoch_has_the_shares_and_each_sample_its_turn(share_prefix: bool) -> None:
    one = sampler(Mixture(weights={"a": 1, "b": 1, "c": 2}), share_prefix=share_prefix)
    orders = epochs(one, 5)
    assert all(tasks_in(order) == {"a": 24, "b": 24, "c": 48} for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    used = Counter(index for order in orders for index in order)
    for first, size in ((0, 60), (60, 30), (90, 6)):
        times = [used[index] for index in range(first, first + size)]
        assert max(times) - min(times) <= 1  # no sample is repeated before all others were used


def test_without_weights_or_limits_an_epoch_holds_every_sample_once() -> None:
    assert all(sorted(order) == list(range(96)) for order in epochs(sampler(Mixture()), 2))


def test_samples_with_a_common_prefix_stay_together_and_copies_do_not() -> None:
    (order,) = epochs(sampler(Mixture(weights={"a": 1, "b": 1, "c": 0})), 1)
    groups = Counter(index // 3 for index in order if index < 60)
    neighbors = sum(first // 3 == second // 3 for first, second in pairwise(order))
    assert neighbors >= 2 * (len(order) // 3) - len(groups)  # nearly all groups are whole and in one place
    (order,) = epochs(sampler(Mixture(weights={"a": 0, "b": 0, "c": 1})), 1)
    assert Counter(order) == dict.fromkeys(range(90, 96), 16)
    assert sum(first == second for first, second in pairwise(order)) < 8


def test_shared_tokens_of_chosen_samples_are_exact() -> None:
    from nemo_launcher.data.mixture import _restricted

    ids = [sample.input_ids for sample in samples()]
    ids += [[*range(1000, 1020), 500 + number] for number in range(4)]
    keep = np.random.default_rng(0).random(len(ids)) < 0.4
    found = _restricted(PrefixOrder.of(ids), keep)
    expected = PrefixOrder.of([tokens for tokens, kept in zip(ids, keep, strict=True) if kept])
    assert found.members.tolist() == np.flatnonzero(keep)[expected.members].tolist()
    assert found.shared.tolist() == expected.shared.tolist()
    assert prefix_trees([ids[index] for index in found.members])


def test_an_epoch_continues_after_any_batch_without_those_before_it() -> None:
    mixture = Mixture(weights={"a": 1, "b": 2, "c": 3})
    whole = epochs(sampler(mixture), 3)[2]
    for skip in (0, 8, 40, 88):
        resumed = sampler(mixture)
        resumed.set_epoch(2)
        resumed.skip = skip
        assert list(resumed) == whole[skip:]


def test_the_log_states_the_mixture() -> None:
    text = str(MixedTasks.of(samples(), [], TEMPLATES, Mixture(weights={"a": 1, "b": 1, "c": 2})))
    assert text.endswith("a 25.0% (24 of 60 samples), b 25.0% (24 of 30 samples), c 50.0% (48 of 6 samples)")


def test_tasks_with_a_weight_but_no_samples_are_named() -> None:
    weights = {"a": 1, "b": 0, "c": 0, "d": 3, "e": 0}
    text = str(MixedTasks.of(samples(), [], TEMPLATES, Mixture(weights=weights)))
    assert text.endswith(
        "a 100.0% (96 of 60 samples), b 0.0% (0 of 30 samples), c 0.0% (0 of 6 samples); no samples of d"
    )
    with pytest.raises(UserError, match="no training sample is of d or e, and"):
        MixedTasks.of(samples(), [], TEMPLATES, Mixture(weights={"a": 0, "b": 0, "c": 0, "d": 3, "e": 1}))


@pytest.mark.parametrize(
    ("mixture", "named"),
    [
        ({"weights": {"squad": 1, "squat": 1}}, "model.data.mixture.weights.squat: is not a task"),
        ({"weights": {}}, "model.data.mixture.weights: has no weight for the task 'squad'"),
        ({"weights": {"squad": 0}}, "are all 0"),
        ({"weights": {"squad": 1}, "temperature": 2.0}, "model.data.mixture.temperature: has no effect"),
        ({"weights": {"squad": 1}, "max_per_task": 5}, "model.data.mixture.max_per_task: has no effect"),
    ],
)
def test_a_mixture_that_says_two_things_is_refused(mixture: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = job_config(tmp_path / "b.nemo", tmp_path, tmp_path, {"model.data.mixture": mixture})
    assert any(named in str(problem) for problem in mixture_problems(loaded(config).section.model))


def test_a_mixture_shuffles(tmp_path: Path) -> None:
    config = job_config(tmp_path / "b.nemo", tmp_path, tmp_path, {"model.data.shuffle": False})
    assert mixture_problems(loaded(config).section.model) == []
    config["model"]["data"]["mixture"] = {"temperature": 2.0}
    (problem,) = mixture_problems(loaded(config).section.model)
    assert problem.where == "model.data.shuffle"
