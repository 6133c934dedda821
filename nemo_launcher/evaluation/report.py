"""What an evaluation ends with: summary.json and the table a person reads."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nemo_launcher.evaluation.squad_metrics import SquadScore

_NAMES = {"base": "frozen base", "adapter": "base + adapter"}
_EXAMPLE = "context: The canal was opened in 1869 by Ferdinand de Lesseps. question: Who opened the canal? answer:"


def summarize(config: DictConfig, scores: Mapping[str, SquadScore]) -> dict[str, Any]:
    """Return the figures of training (when config.training_summary_path names them) and evaluation, fractions 0..1."""
    summary: dict[str, Any] = {
        name: {"em": score.exact_match, "f1": score.f1, "questions": score.total} for name, score in scores.items()
    }
    if config.training_summary_path and Path(config.training_summary_path).is_file():
        summary |= json.loads(Path(config.training_summary_path).read_text(encoding="utf-8"))
    return summary | {"adapter_path": str(config.adapter_model_file)}


def table(summary: Mapping[str, Any], scores: Mapping[str, SquadScore], config: DictConfig, base_path: str) -> str:
    """Return the closing table: scores, what was trained, how fast, and the command that uses the adapter."""
    total = next(iter(scores.values())).total
    lines = ["", f"{f'{total} unseen questions':<22}{'exact match':>12}{'F1':>8}"]
    for name, score in scores.items():
        lines.append(f"{_NAMES[name]:<22}{score.exact_match:>12.1%}{score.f1:>8.1%}")
    lines.append("")
    if "trainable_parameters" in summary:
        lines += [
            f"{'trained parameters':<22}{summary['trainable_parameters']:,} ({summary['trainable_share']:.3%})",
            f"{'training speed':<22}{summary['samples_per_second']:.1f} samples/s, "
            f"{summary['tokens_per_second']:,.0f} tokens/s",
            f"{'peak memory':<22}{summary['peak_memory_gib']:.2f} GiB",
        ]
    adapter = summary["adapter_path"]
    # beside this interpreter, whose environment need not be activated
    program = str(Path(sys.executable).with_name("nemo-launcher"))
    command = [program, "generate", "--base", str(base_path), "--adapter", adapter, "--prompt", _EXAMPLE]
    lines += [f"{'adapter':<22}{adapter}", "", "Ask it a question of your own:", f"  {shlex.join(command)}"]
    return "\n".join(lines)
