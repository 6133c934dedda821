# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: summary.json and the final table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_launcher.config.sections import Evaluation
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.evaluation.metrics import METRICS, Metric, Score
from nemo_launcher.runtime.progress_file import load_summary

_TRAINING_FIGURES = {
    "trainable_parameters": ",",
    "trainable_share": ".3%",
    "samples_per_second": ".1f",
    "tokens_per_second": ",.0f",
    "peak_memory_gib": ".2f",
}
_NAMES = {"base": "frozen base", "adapter": "base + adapter"}
_EXAMPLE = "context: The canal was opened in 1869 by Ferdinand de Lesseps. question: Who opened the canal? answer:"


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


def summarize(config: Evaluation, scores: Mapping[str, Score], training: Mapping[str, object]) -> dict[str, object]:
    """Return the figures of training (training_figures) and evaluation; scores are fractions from 0 to 1."""
    summary: dict[str, object] = {
        name: {metric.summary_key: score.values[metric.name] for metric in METRICS} | {"questions": score.total}
        for name, score in scores.items()
    }
    return {**training, **summary} | {"adapter_path": str(config.adapter_model_file)}


def table(
    summary: Mapping[str, object],
    scores: Mapping[str, Score],
    config: Evaluation,
    *,
    num_questions: int,
    templates: Sequence[TaskTemplate],
) -> str:
    """Return the final table: scores, trained parameters, speed, and a command that uses the adapter.

    scores: empty if there were no answers to score with. templates: those of the adapter's tasks.
    """
    lines = ["", f"{num_questions} predictions, not scored: {config.pred_file_path}"]
    if scores:
        lines = ["", f"{f'{num_questions} questions':<22}" + "".join(f"{m.title:>{_width(m)}}" for m in METRICS)]
    for name, score in scores.items():
        values = "".join(f"{score.values[metric.name]:>{_width(metric)}.1%}" for metric in METRICS)
        lines.append(f"{_NAMES[name]:<22}{values}")
    lines.append("")
    if "trainable_parameters" in summary:
        shown = {name: _figure(summary.get(name), form) for name, form in _TRAINING_FIGURES.items()}
        lines += [
            f"{'trained parameters':<22}{shown['trainable_parameters']} ({shown['trainable_share']})",
            f"{'training speed':<22}{shown['samples_per_second']} samples/s, {shown['tokens_per_second']} tokens/s",
            f"{'peak memory':<22}{shown['peak_memory_gib']} GiB",
        ]
    adapter = str(summary["adapter_path"])
    # the full path works without activating the environment
    program = str(Path(sys.executable).with_name("nemo-launcher"))
    command = [program, "generate", "--base", config.language_model_path, "--adapter", adapter]
    is_squad = {name for template in templates for name in template.prompt_fields()} == {"context", "question"}
    command += ["--prompt", _EXAMPLE] if is_squad else ["--jsonl", str(config.data_paths[0])]
    title = "Ask your own question:" if is_squad else "Use it on your own records:"
    if scores:
        lines.append(f"{'predictions':<22}{config.pred_file_path}")
    lines += [f"{'adapter':<22}{adapter}", "", title, f"  {shlex.join(command)}"]
    return "\n".join(lines)


def _width(metric: Metric) -> int:
    """Return the width of a metric's column in characters."""
    return max(8, len(metric.title) + 1)


def _figure(value: object, form: str) -> str:
    """Return a number from the training's summary as text; `unknown` if it is missing."""
    return format(value, form) if isinstance(value, int | float) else "unknown"
