# SPDX-License-Identifier: Apache-2.0
"""What a training was made from: versions, base, data and the lengths of its samples, for its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_launcher.config.sections import Learning
from nemo_launcher.data.samples import Sample
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.provenance import PROVENANCE_NAME, file_facts, provenance_of_process, write_provenance
from nemo_launcher.training.record import DATA_KEYS, TrainingRecord

MAX_COUNTED = 200_000
"""Maximum number of samples whose lengths are counted, which takes a second."""
_BINS = 24


def write_training_provenance(
    config: Learning, record: TrainingRecord, train: Sequence[Sample], validation: Sequence[Sample]
) -> None:
    """Write provenance.json into the results folder, on rank 0."""
    if ranks.rank() != 0:
        return
    facts = provenance_of_process(device=str(record["environment"]["device"]), ranks=ranks.world_size())
    files = {key: zip(getattr(config.model.data, key), record["data"][key], strict=True) for key in DATA_KEYS}
    facts["base"] = {"path": config.model.language_model_path, **record["base"]}
    hub = config.run.hub_data
    facts["data"] = {key: [file_facts(path, sha256, hub) for path, sha256 in files[key]] for key in DATA_KEYS}
    facts["samples"] = {"train_ds": len(train), "validation_ds": len(validation)}
    facts["lengths"] = lengths_of(train)
    write_provenance(Path(config.exp_manager.explicit_log_dir) / PROVENANCE_NAME, facts)


def lengths_of(samples: Sequence[Sample]) -> dict[str, object] | None:
    """Return the numbers of tokens of training samples and their histogram; None if there are too many to count.

    `edges` has one value more than `counts`. `trained` is the number of tokens in the loss.
    """
    if not 0 < len(samples) <= MAX_COUNTED:
        return None
    tokens = np.array([sample.num_input_tokens for sample in samples])
    counts, edges = np.histogram(tokens, bins=_BINS, range=(0, int(tokens.max()) + 1))
    return {
        "shortest": int(tokens.min()),
        "median": float(np.median(tokens)),
        "longest": int(tokens.max()),
        "total": int(tokens.sum()),
        "trained": sum(sample.num_trained_tokens for sample in samples),
        "edges": [round(float(edge), 2) for edge in edges],
        "counts": counts.tolist(),
    }
