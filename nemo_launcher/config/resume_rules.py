# SPDX-License-Identifier: Apache-2.0
"""The keys that may differ between two starts of the same training, for the launcher and the job.

Every other key affects the result: changing it makes a different training, which needs another folder.
"""

from __future__ import annotations

from collections.abc import Sequence

HARMLESS = (
    "run.time_limit",
    "run.dependency",
    "run.automatic",
    "run.hub_data",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
    "trainer.resume_from_checkpoint",
    "exp_manager.create_wandb_logger",
    "exp_manager.wandb_logger_kwargs",
    "exp_manager.create_tensorboard_logger",
    "exp_manager.summary_writer_kwargs",
    "exp_manager.create_csv_logger",
    "exp_manager.create_mlflow_logger",
    "exp_manager.mlflow_logger_kwargs",
    "exp_manager.log_step_timing",
    "exp_manager.log_tflops_per_sec_per_gpu",
    "exp_manager.max_time_per_run",
    "exp_manager.resume_if_exists",
    "exp_manager.resume_ignore_no_checkpoint",
    "exp_manager.checkpoint_callback_params.save_last",
    "exp_manager.checkpoint_callback_params.save_top_k",
    "exp_manager.checkpoint_callback_params.model_parallel_size",
    "exp_manager.checkpoint_callback_params.verbose",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end",
    "exp_manager.checkpoint_callback_params.always_save_nemo",
    "exp_manager.checkpoint_callback_params.every_n_train_steps",
    "exp_manager.checkpoint_callback_params.train_time_interval",
    "exp_manager.validation_metric_params.batch_size",
    "model.data.test_ds",
    "model.data.near_duplicates",
    "model.data.num_workers",
    "model.data.pin_memory",
    "model.data.cache_dir",
)
"""Keys, including those below them, that do not affect results."""

LAST_DIGITS = (
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.deterministic",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.pipeline_model_parallel_split_rank",
    "model.model_parallel_size",
    "model.sequence_parallel",
    "model.activations_checkpoint_granularity",
    "model.activations_checkpoint_method",
    "model.activations_checkpoint_num_layers",
    "model.attention_backend",
    "model.fused_kernels",
    "model.torch_compile",
    "model.data.layout",
    "model.data.cache_hidden",
    "model.data.traversal",
)
"""Keys that only change the order of summation and therefore at most the last digits of results."""

OUTPUTS = ("exp_manager.explicit_log_dir", "exp_manager.exp_dir", "exp_manager.name", "model.nemo_path")
"""Locations of the results: a training whose folder was moved can resume."""

BY_CONTENT = ("model.language_model_path", "model.data.train_ds", "model.data.validation_ds")
"""Files of which the job compares the contents, and the launcher the names."""


def refused_changes(before: object, after: object, also_free: Sequence[str] = ()) -> list[str]:
    """Return the dotted keys that differ and affect the result. also_free: further keys that may differ."""
    free = (*HARMLESS, *LAST_DIGITS, *also_free)
    return [key for key in differing_keys(before, after) if not is_below(key, free)]


def differing_keys(before: object, after: object, prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two sections; absent keys count as null."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        below = f"{prefix}." if prefix else ""
        return [found for key in keys for found in differing_keys(before.get(key), after.get(key), f"{below}{key}")]
    return [] if before == after else [prefix]


def is_below(key: str, tops: Sequence[str]) -> bool:
    """Return whether a dotted key is in `tops` or below one of them."""
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def describe(before: object, after: object, keys: Sequence[str]) -> str:
    """Return `key (old -> new)` for the first eight keys, and the number of the others."""
    shown = ", ".join(f"{key} ({value_of(before, key)} -> {value_of(after, key)})" for key in keys[:8])
    return shown + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def value_of(config: object, key: str) -> object:
    """Return the value of a dotted key; None if it is absent."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
