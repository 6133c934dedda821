# SPDX-License-Identifier: Apache-2.0
"""Killed evaluations that score answer choices and right answers: the next start continues, with the same bits."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter, save_adapter
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.evaluation import ranking, scoring
from nemo_launcher.evaluation.answer_keys import scores_key
from nemo_launcher.evaluation.ranking import rank_choices
from nemo_launcher.evaluation.scoring import score
from nemo_launcher.families.base import load_base
from tests.engine import adapted, write_jsonl
from tests.evaluation.test_own_task import topics
from tests.evaluation.test_ranking import TEMPLATE, records
from tests.evaluation.test_stopped_jobs import OF_THE_RUN
from tests.jobs import Job, evaluation_config, job_config, run_script
from tests.world import run_job

COUNT = 10


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choices")
    config = job_config(tiny_base, folder, folder)["model"]
    template = topics(TEMPLATE.prompt_template, answer_only_loss=True, choices_field="topics", truncate_field=None)
    config["task_templates"] = [config["task_templates"][0] | template]
    save_adapter(folder / "adapter.nemo", config, adapted(tiny_base, config)[1].state_dict())
    return folder / "adapter.nemo"


def kill_at(name: str, scores: int) -> None:
    """Kill this process after this many scores of a file."""
    from nemo_launcher.evaluation.kept_answers import KeptAnswers

    take, count = KeptAnswers.take, 0

    def counted(self: KeptAnswers[float], *args: Any, **more: str) -> None:
        nonlocal count
        take(self, *args, **more)
        count += self.path.name == name
        if count == scores:
            os.kill(os.getpid(), signal.SIGKILL)

    KeptAnswers.take = counted  # type: ignore[method-assign]


def settings(base: Path, adapter: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    data = write_jsonl(adapter.parent / "choices.jsonl", records(COUNT))
    options = {"data_paths": [str(data)], "ground_truth_file_path": None, "compare_with_base": True}
    options |= {"metrics": ["rank_classification", "perplexity"]}
    config = evaluation_config(base, adapter, folder, folder, **options | changes)
    config["inference"] |= {"batch_size": 3, "tokens_to_generate": 2}
    return config


def same_results(folder: Path, other: Path) -> None:
    """Check that both have the same files, bit by bit, and that nothing else is left."""
    found = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    wanted = {path.name: path.read_bytes() for path in (other / "results").iterdir()}
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if found[name] != wanted[name]} <= set(OF_THE_RUN)


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "job"
    job = run_script("evaluate", settings(tiny_base, adapter, folder), folder)
    assert job.status == 0, job.output
    assert "resuming" not in job.output
    return folder


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "scores"),
    [
        pytest.param("base_predictions.txt.choices.partial", 4, id="within_a_batch_of_the_base"),
        pytest.param("base_predictions.txt.likelihoods.partial", 3, id="between_batches_of_right_answers"),
        pytest.param("predictions.txt.choices.partial", 8, id="with_the_adapter"),
        pytest.param("predictions.txt.likelihoods.partial", COUNT, id="after_all"),
    ],
)
def test_a_killed_evaluation_continues_with_the_same_bits(
    name: str, scores: int, tiny_base: Path, adapter: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = settings(tiny_base, adapter, tmp_path / "job")
    killed = run_script("evaluate", config, tmp_path / "job", before=kill_at, args=(name, scores))
    assert killed.status == -signal.SIGKILL, killed.output
    again = run_script("evaluate", config, tmp_path / "job")
    assert again.status == 0, again.output
    assert f"resuming from {scores} scores in {tmp_path / 'job/results' / name}" in again.output
    same_results(tmp_path / "job", undisturbed)


@pytest.mark.integration
def test_replicas_continue_where_one_process_was_killed(
    tiny_base: Path, adapter: Path, undisturbed: Path, tmp_path: Path
) -> None:
    name = "predictions.txt.choices.partial"
    config = settings(tiny_base, adapter, tmp_path / "job")
    run_script("evaluate", config, tmp_path / "job", before=kill_at, args=(name, 3))
    config["trainer"]["devices"] = 2
    jobs = run_job(2, "evaluate", config, tmp_path / "job")
    assert {job.status for job in jobs} == {0}, [job.output for job in jobs]
    assert f"resuming from 3 scores in {tmp_path / 'job/results' / name}" in jobs[0].output
    same_results(tmp_path / "job", undisturbed)


@pytest.mark.integration
@pytest.mark.parametrize("changed", ["adapter", "batch_size", "data"])
def test_scores_of_another_evaluation_are_not_taken(
    changed: str, tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    config = settings(tiny_base, adapter, tmp_path / "job")
    name = "predictions.txt.choices.partial"
    assert run_script("evaluate", config, tmp_path / "job", before=kill_at, args=(name, 8)).status < 0

    def start(folder: Path) -> Job:
        config = settings(tiny_base, adapter, folder)
        if changed == "adapter":
            values, state = read_adapter(adapter)
            config["adapter_model_file"] = str(tmp_path / "other.nemo")
            doubled = {key: {name: 2 * tensor for name, tensor in of.items()} for key, of in state.items()}
            save_adapter(tmp_path / "other.nemo", values, doubled)
        elif changed == "batch_size":
            config["inference"]["batch_size"] = 4
        else:
            other = [row | {"topics": [*row["topics"], "weather"]} for row in records(COUNT)]
            config["data_paths"] = [str(write_jsonl(tmp_path / "choices.jsonl", other))]
        return run_script("evaluate", config, folder)

    again, fresh = start(tmp_path / "job"), start(tmp_path / "fresh")
    assert (again.status, fresh.status) == (0, 0), again.output
    assert f"in {tmp_path / 'job/results' / name}" not in again.output
    of_base = f"in {tmp_path / 'job/results' / f'base_{name}'}" in again.output
    assert of_base is (changed == "adapter")  # the base has scored the same choices
    same_results(tmp_path / "job", tmp_path / "fresh")


@pytest.mark.integration
def test_a_file_in_the_way_is_told_before_the_first_answer(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "job/results/base_predictions.txt.likelihoods.partial"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    job = run_script("evaluate", settings(tiny_base, adapter, tmp_path / "job"), tmp_path / "job")
    assert (job.status, foreign.read_text(), "frozen base:" in job.output) == (2, "mine\n", False), job.output
    assert f"{foreign}: is not a file of scores" in job.output


@pytest.mark.unit
def test_batches_are_left_out_or_computed_whole(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(tiny_base)
    encoders = [
        base.family.prompt_encoder(base.tokenizer, base.shape, PromptSettings.read({}), with_choices=choices)
        for choices in (True, False)
    ]
    rows = [encoder.encode(row, TEMPLATE, "data:1") for encoder in encoders for row in records(COUNT)]
    choices, answers = rows[:COUNT], rows[COUNT:]
    sizes: list[int] = []
    for module in (ranking, scoring):
        losses = module.token_losses
        monkeypatch.setattr(
            module, "token_losses", lambda model, batch, run=losses: sizes.append(1) or run(model, batch)
        )
    ranked = rank_choices(base, choices, [TEMPLATE] * COUNT, batch_size=3)
    scored = list(score(base, answers, batch_size=3))
    assert len(sizes) == 8
    order = [place for batch in scoring.batches_left(choices, 3, {}, share_prefix=True) for place in batch]
    known, kept = order[:4], list[int]()
    found = rank_choices(
        base,
        choices,
        [TEMPLATE] * COUNT,
        batch_size=3,
        known={place: ranked[place] for place in known},
        keep=lambda place, scores: kept.append(place),
    )
    assert (found, sorted(kept + known), len(sizes)) == (ranked, list(range(COUNT)), 8 + 3)
    order = [place for batch in scoring.batches_left(answers, 3, {}, share_prefix=True) for place in batch]
    of_known = {place: scored[place] for place in order[:6]}
    assert list(score(base, answers, batch_size=3, known=of_known)) == scored
    assert len(sizes) == 8 + 3 + 2


@pytest.mark.unit
def test_everything_that_determines_scores_is_in_their_key(tiny_base: Path, adapter: Path) -> None:
    base = load_base(tiny_base)
    encoder = base.family.prompt_encoder(base.tokenizer, base.shape, PromptSettings.read({}), with_choices=True)
    samples = [encoder.encode(row, TEMPLATE, "data:1") for row in records(3)]
    state = read_adapter(adapter)[1]
    changed = {key: {name: torch.zeros_like(tensor) for name, tensor in of.items()} for key, of in state.items()}
    other = encoder.encode(records(3)[2] | {"topics": ["world", "sports", "war"]}, TEMPLATE, "data:1")
    keys = [
        scores_key(base, state, samples, 3),
        scores_key(base, {}, samples, 3),
        scores_key(base, changed, samples, 3),
        scores_key(base, state, samples, 4),
        scores_key(base, state, samples[:2], 3),
        scores_key(base, state, samples[::-1], 3),
        scores_key(base, state, [*samples[:2], other], 3),
        scores_key(replace(base, sums=dict.fromkeys(base.sums, 0)), state, samples, 3),
        scores_key(load_base(tiny_base, dtype=torch.bfloat16), state, samples, 3),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == scores_key(load_base(tiny_base), state, samples, 3)
