"""Prompt data: JSONL records, templates, SQuAD and batching."""
