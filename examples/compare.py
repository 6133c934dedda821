# SPDX-License-Identifier: Apache-2.0
"""Base against adapter on labelled records:

    python examples/compare.py BASE.nemo ADAPTER.nemo RECORDS.jsonl --template "text: {text} topic: {topic}" \\
        --answer-field topic

Both score the same answers with the same template. The figure is the mean probability per answer token.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from nemo_launcher import Model
from nemo_launcher.evaluation.intervals import paired_difference


def main() -> None:
    """Print both figures, their difference with its 95% interval, and the records that differ most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--template", required=True)
    parser.add_argument("--answer-field", required=True)
    options = parser.parse_args()

    model = Model.load(options.base, adapter=options.adapter)
    how = {"template": options.template, "answer_field": options.answer_field}
    with_adapter = [math.exp(-score.nll_mean) for score in model.score(options.records, **how)]
    model.unload_adapter()
    alone = [math.exp(-score.nll_mean) for score in model.score(options.records, **how)]

    found = paired_difference(with_adapter, alone)
    count = len(alone)
    print(f"base alone:   {sum(alone) / count:.3f}")
    print(f"with adapter: {sum(with_adapter) / count:.3f}")
    decided = "" if found.is_decided else ", undecided"
    print(f"difference:   {found.value:+.3f} (95% interval {found.low:+.3f} to {found.high:+.3f}{decided})")
    changes = sorted(range(count), key=lambda place: alone[place] - with_adapter[place])
    print(f"most improved: records {[place + 1 for place in changes[:3]]}")


if __name__ == "__main__":
    main()
