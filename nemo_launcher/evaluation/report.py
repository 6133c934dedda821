# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: summary.json and the final table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_launcher.config.sections import Evaluation
from nemo_launcher.data.templates import TaskTemplate, fill_template
from nemo_launcher.evaluation.figures import Json
from nemo_launcher.evaluation.results_table import results_table
from nemo_launcher.evaluation.squad_score import SUMMARY_KEYS, Score
from nemo_launcher.runtime.progress_file import load_summary

_TRAINING_FIGURES = {
    "trainable_parameters": ",",
    "trainable_share": ".3%",
    "samples_per_second": ".1f",
    "tokens_per_second": ",.0f",
    "peak_memory_gib": ".2f",
}
_EXAMPLE = {
    "context": "The canal was opened in 1869 by Ferdinand de Lesseps.",
    "question": "Who opened the canal?",
}
"""A question for an adapter that was trained on SQuAD."""


def training_figures(config: Evaluation) -> dict[str, object]:
    """Return the content of config.training_summary_path; {} if it is not set or, with a message, if it is absent.

    Raises UserError for a file that is not a training summary.
    """
    if not config.training_summary_path:
        return {}
    path = Path(config.training_summary_path)
    if not path.is_file():
        print(f"training_summary_path: {path} does not exist; the summary will lack the training's figures", flush=True)
        return {}
    return load_summary(path)


def summarize(
    config: Evaluation, scores: Mapping[str, Score], measured: Json, training: Mapping[str, object]
) -> dict[str, object]:
    """Return the figures of training (training_figures) and evaluation; scores are fractions from 0 to 1.

    measured: the metrics with their intervals; {} if there were no answers to score with.
    """
    summary: dict[str, object] = {
        name: {key: score.values[metric] for metric, key in SUMMARY_KEYS.items()} | {"questions": score.total}
        for name, score in scores.items()
    }
    summary |= {"evaluation": measured} if measured else {}
    return {**training, **summary} | {"adapter_path": str(config.adapter_model_file)}


def table(
    summary: Mapping[str, object],
    measured: Json,
    config: Evaluation,
    *,
    num_questions: int,
    templates: Sequence[TaskTemplate],
) -> str:
    """Return the final table: metrics, trained parameters, speed, and a command that uses the adapter.

    measured: {} if there were no answers to score with. templates: those of the adapter's tasks.
    """
    lines = ["", *results_table(measured), ""]
    if not measured:
        lines = ["", f"{num_questions} predictions, not scored: {config.pred_file_path}", ""]
    if "trainable_parameters" in summary:
        shown = {name: _figure(summary.get(name), form) for name, form in _TRAINING_FIGURES.items()}
        lines += [
            f"{'trained parameters':<22}{shown['trainable_parameters']} ({shown['trainable_share']})",
            f"{'training speed':<22}{shown['samples_per_second']} samples/s, {shown['tokens_per_second']} tokens/s",
            f"{'peak memory':<22}{shown['peak_memory_gib']} GiB",
        ]
    if measured:
        lines.append(f"{'predictions':<22}{config.pred_file_path}")
    adapter = str(summary["adapter_path"])
    return "\n".join([*lines, f"{'adapter':<22}{adapter}", "", *_command(config, adapter, templates)])


def _command(config: Evaluation, adapter: str, templates: Sequence[TaskTemplate]) -> list[str]:
    """Return the lines of a command that uses the adapter: on a question of SQuAD's kind, or on the evaluated file."""
    # the full path works without activating the environment
    program = str(Path(sys.executable).with_name("nemo-launcher"))
    options = [["--base", config.language_model_path], ["--adapter", adapter]]
    is_squad = [(t.taskname, set(t.prompt_fields())) for t in templates] == [("squad", set(_EXAMPLE))]
    if is_squad:
        title, answer = "Ask your own question:", templates[0].answer_field
        options.append(["--prompt", fill_template(templates[0], _EXAMPLE, nemo_compat=False, until=answer)])
    else:
        title = "Use it on your own records:"
        options.append(["--jsonl", str(config.data_paths[0])])
    lines = [shlex.join([program, "generate"]), *(f"    {shlex.join(option)}" for option in options)]
    return [title, *(f"  {line} \\" for line in lines[:-1]), f"  {lines[-1]}"]


def _figure(value: object, form: str) -> str:
    """Return a number from the training's summary as text; `unknown` if it is missing."""
    return format(value, form) if isinstance(value, int | float) else "unknown"
