# SPDX-License-Identifier: Apache-2.0
"""Keys without effect: each key is either read by the code or in the table of ignored keys, never both."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from nemo_launcher.config.ignored import LEARNING
from nemo_launcher.config.without_effect import foreign_keys, full_keys, refused, rows, warnings
from nemo_launcher.launcher.suggestions import SECTIONS, known_keys
from tests.workplace import REPOSITORY, Workplace

from .test_mistake_table import Launch

pytestmark = pytest.mark.unit

PASSED_WHOLE = {
    "cluster.": "clusters/slurm/cluster.py",
    "trainer.": "training/nemo/trainer.py",
    "exp_manager.wandb_logger_kwargs.": "training/nemo/experiment.py",
    "exp_manager.mlflow_logger_kwargs.": "training/nemo/experiment.py",
    "exp_manager.summary_writer_kwargs.": "training/nemo/experiment.py",
    "exp_manager.early_stopping_callback_params.": "training/nemo/experiment.py",
    "model.optim.": "training/nemo/optimization.py",
}
"""Sections whose keys are passed to a library -> where."""
RULES = (
    *("config/sections/", "config/ignored.py", "config/resume_rules.py"),
    *("launcher/conditional.py", "launcher/suggestions.py"),
)
"""Modules that name keys without reading them."""
OTHERS_OF_THE_NAME = {
    "monitor": {
        "jobs/superseded.py",
        "config/monitored.py",
        "config/training_options.py",
        "evaluation/monitored.py",
        "evaluation/validation.py",
        "training/best_values.py",
        "training/nemo/checkpointing.py",
        "training/nemo/experiment.py",
    },  # of callbacks
    "logger": {"training/nemo/callbacks.py", "training/nemo/checkpointing.py"},
    "version": {
        "adapters/forms/adapterhub.py",
        "cli.py",
        "data/cache.py",
        "clusters/slurm/sbatch_options.py",
        "requirements.py",
        "runtime/gpus.py",
        "runtime/provenance.py",
        "checkpoint/torch_zip_writer.py",
    },
    "mode": {
        "config/monitored.py",
        "evaluation/monitored.py",
        "training/best_values.py",
        *(
            "training/nemo/checkpointing.py",
            "training/best_checkpoints.py",
            "checkpoint/archive_writer.py",
            "launcher/checks/training.py",
        ),
        *("config/resume_rules.py", "clusters/base.py", "launcher/compose.py"),
    },
    "enable": {"runtime/startup.py"},
    "replace_sampler_ddp": {"config/older_names.py"},  # renamed
    "use_distributed_sampler": {"config/older_names.py"},
}
"""Files where the name of an ignored key has another meaning."""


def read_names(files: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return every name that the code reads as an attribute or a string -> the files; sources: (name, source)."""
    found: dict[str, set[str]] = {}
    for name, source in files:
        for word in words_of(ast.parse(source)):
            found.setdefault(word, set()).add(name)
    return found


def words_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
            yield node.value.rpartition(".")[2]


@functools.cache
def names_of_the_code() -> dict[str, set[str]]:
    return read_names(sources())


def sources() -> list[tuple[str, str]]:
    package = REPOSITORY / "nemo_launcher"
    files = [(str(path.relative_to(package)), path) for path in sorted(package.rglob("*.py"))]
    files += [(path.name, path) for path in sorted((REPOSITORY / "launcher_scripts").glob("*.py"))]
    return [(name, path.read_text()) for name, path in files if not name.startswith(RULES)]


def names_in_conf() -> set[str]:
    """Return the last parts of references in conf/, such as ${.task_name}."""
    text = "\n".join(path.read_text() for path in (REPOSITORY / "conf").rglob("*.yaml"))
    return {name.rpartition(".")[2] for name in re.findall(r"\$\{([\w.]+)\}", text)}


def unread(keys: Iterable[str], names: dict[str, set[str]]) -> list[str]:
    """Return the configuration's keys that nothing reads."""
    known, in_conf = set(full_keys()), names_in_conf()
    found = []
    for key in keys:
        below = key.partition(".")[2] if key.partition(".")[0] in SECTIONS else key
        passed = key.startswith(tuple(PASSED_WHOLE)) or below.startswith(tuple(PASSED_WHOLE))
        last = key.rpartition(".")[2]
        if key not in known and not passed and last not in names and last not in in_conf:
            found.append(key)
    return found


def test_every_key_is_read_or_in_the_table() -> None:
    keys = [key for key in known_keys() if not any(other.startswith(f"{key}.") for other in known_keys())]
    assert len(keys) > 250
    assert unread(keys, names_of_the_code()) == []


def test_a_key_that_nothing_reads_is_found() -> None:
    assert unread(["adapter_learning.model.brand_new"], names_of_the_code()) == ["adapter_learning.model.brand_new"]
    code = 'x = config["model"].get("brand_new")'
    assert unread(["adapter_learning.model.brand_new"], read_names([("a.py", code)])) == []


def test_every_key_of_the_table_is_in_the_configuration_and_read_nowhere() -> None:
    names = names_of_the_code()
    for key in full_keys():
        assert key in known_keys()
        last = key.rpartition(".")[2]
        assert names.get(last, set()) <= OTHERS_OF_THE_NAME.get(last, set()), key


def test_keys_of_nemo_alone_are_not_in_the_configuration() -> None:
    assert not set(foreign_keys()).intersection(known_keys())


def test_sections_that_a_library_gets_are_given_to_it() -> None:
    text = dict(sources())
    for section, name in PASSED_WHOLE.items():
        (file,) = [source for path, source in text.items() if path.endswith(name)]
        assert section.rstrip(".").rpartition(".")[2] in file or "**options" in file


def values() -> list[tuple[str, Any, bool]]:
    """Yield a key of each section in the table, a value other than the documented one, and whether it is refused."""
    return [
        ("trainer.logger", True, True),
        ("trainer.use_distributed_sampler", True, True),
        ("trainer.accumulate_grad_batches", 2, True),
        ("exp_manager.exp_dir", "/x", True),
        ("exp_manager.version", "v1", True),
        ("model.virtual_prompt_style", "p-tuning", True),
        ("model.optim.sched.monitor", "lr", True),
        ("model.optim.sched.reduce_on_plateau", True, True),
        ("model.gradient_as_bucket_view", True, False),
        ("model.model_parallel_size", 8, False),
        ("exp_manager.checkpoint_callback_params.model_parallel_size", 8, False),
    ]


@pytest.mark.parametrize("are_refused", [True, False])
def test_other_values_are_refused_or_told(launch: Launch, workplace: Workplace, are_refused: bool) -> None:
    chosen = [(key, value) for key, value, is_refused in values() if is_refused is are_refused]
    given = [f"++adapter_learning.{key}={value}" for key, value in chosen]
    result = launch(*workplace.arguments, *given, "debug=True")
    assert result.status == (2 if are_refused else 0), result.err
    for key, _ in chosen:
        what = "must be" if are_refused else "has no effect"
        assert f"adapter_learning.{key} (command line): {what}" in result.err


WITHOUT_EFFECT = [
    ("cluster.partition=gpu", "cluster.partition (command line): has no effect: cluster_type is interactive"),
    ("container=image", "container (command line): has no effect: cluster_type is interactive"),
    ("@run.time_limit='01:00:00'", "@run.time_limit (command line): has no effect: cluster_type is interactive"),
    ("@run.dependency='afterok:12'", "@run.dependency (command line): has no effect: cluster_type is interactive"),
    (
        "++env_vars.TOKEN=ghp_0123456789abcdefghij0123456789abcdef",
        "env_vars.TOKEN (command line): looks like an API key",
    ),
    ("wandb_api_bcp_secret_key=KEY", "cluster_type=bcp"),
    ("++@exp_manager.wandb_logger_kwargs.group=x", "@exp_manager.create_wandb_logger=True"),
    ("++@exp_manager.early_stopping_callback_params.patience=3", "++@exp_manager.create_early_stopping_callback=True"),
    ("++@exp_manager.summary_writer_kwargs.max_queue=3", "@exp_manager.create_tensorboard_logger=True"),
    ("++@exp_manager.mlflow_logger_kwargs.run_name=x", "++@exp_manager.create_mlflow_logger=True"),
    ("@model.sequence_parallel=True", "@model.sequence_parallel (command line): has no effect: @model.tensor_model"),
    ("++@model.data.add_sentinel_to_input=True", "@model.data.add_sentinel_to_input (command line): has no effect"),
]


def test_what_another_key_leaves_without_effect_is_told(launch: Launch, workplace: Workplace) -> None:
    given = [text.replace("@", "adapter_learning.") for text, _ in WITHOUT_EFFECT]
    off = "adapter_learning.exp_manager.create_tensorboard_logger=False"  # conf/ turns it on
    result = launch(*workplace.arguments, off, *given, "debug=True")
    assert result.status == 0, result.err
    for _, hint in WITHOUT_EFFECT:
        assert hint.replace("@", "adapter_learning.") in result.err


def test_documented_values_are_not_told_of(launch: Launch, workplace: Workplace) -> None:
    assert "no effect" not in launch(*workplace.arguments, "debug=True").err


def test_evaluation_settings_that_nothing_reads_are_told_once() -> None:
    inference = {"all_probs": True, "compute_logprob": True}
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "model_parallel_size": 4}
    section = {"split_string": "A:", "inference": inference, "trainer": {"logger": True}, **sizes}
    problems = warnings(section, "evaluation")
    assert [problem.where for problem in problems] == ["trainer.logger", "split_string", "inference.all_probs"]
    assert "nor have inference.compute_logprob" in problems[2].what
    assert refused({"split_string": "A:", "inference": inference}, "evaluation") == []


def test_the_guide_holds_the_table() -> None:
    guide = (REPOSITORY / "docs/from-nemo-launcher.md").read_text(encoding="utf-8")
    for keys, documented, outcome in rows():
        assert f"| {keys} | {documented} | {outcome} |" in guide
    table = guide.partition("## Keys without effect")[2].partition("\n## ")[0]
    assert table.count("\n| `") == len(rows())


def test_the_same_keys_in_both_trainings() -> None:
    keys = {key for key in full_keys() if key.startswith(LEARNING[0])}
    assert {key.replace(*LEARNING) for key in keys} == {key for key in full_keys() if key.startswith(LEARNING[1])}
