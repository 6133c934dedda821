# SPDX-License-Identifier: Apache-2.0
"""The files that SQuAD is prepared into: named by the launcher, written by data.squad."""

from __future__ import annotations

TRAIN, VALIDATION = "squad_train.jsonl", "squad_val.jsonl"
TEST, GROUND_TRUTH = "squad_test.jsonl", "squad_test_ground_truth.jsonl"
SQUAD_FILES = (TRAIN, VALIDATION, TEST, GROUND_TRUTH)
