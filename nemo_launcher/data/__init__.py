# SPDX-License-Identifier: Apache-2.0
"""Prompt data: JSONL records, templates, SQuAD and batching."""
