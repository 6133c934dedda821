# SPDX-License-Identifier: Apache-2.0
"""What an evaluation was made from: versions, base, adapter and data, for its report."""

from __future__ import annotations

from pathlib import Path

import torch

from nemo_launcher.config.sections import Evaluation
from nemo_launcher.families.base import Base
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.provenance import PROVENANCE_NAME, file_facts, provenance_of_process, write_provenance


def evaluation_provenance(config: Evaluation, base: Base) -> dict[str, object]:
    """Return the content of provenance.json; {} on other ranks than 0. Raises OSError for an unreadable file."""
    if ranks.rank() != 0:
        return {}
    device = torch.cuda.get_device_name() if ranks.uses_gpu() else "cpu"
    facts = provenance_of_process(device=device, ranks=ranks.world_size())
    files = {"data_paths": config.data_paths}
    if config.ground_truth_file_path is not None:
        files["ground_truth_file_path"] = [config.ground_truth_file_path]
    facts["base"] = {
        "path": config.language_model_path,
        "weights": base.fingerprint,
        "checksum": base.checksum,
        "tokenizer": base.tokenizer.identity,
    }
    facts["adapter"] = {"path": config.adapter_model_file, "sha256": sha256_of(config.adapter_model_file)}
    hub = config.run.hub_data
    facts["data"] = {key: [file_facts(path, sha256_of(path), hub) for path in paths] for key, paths in files.items()}
    return facts


def write_evaluation_provenance(config: Evaluation, facts: dict[str, object]) -> None:
    """Write provenance.json beside the predictions, on rank 0, once these are complete."""
    if ranks.rank() == 0:
        write_provenance(Path(config.pred_file_path).with_name(PROVENANCE_NAME), facts)
