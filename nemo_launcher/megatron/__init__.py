"""Frozen Megatron-core models, built from the configuration inside a checkpoint."""
