# SPDX-License-Identifier: Apache-2.0
"""The table of keys that are accepted without effect, with the reason and the values that need no warning.

A value that would change results in NVIDIA's launcher, or an option of the trainer or exp_manager that would do
nothing, is refused; any other value causes one warning at launch (config/without_effect.py). A test checks that every
key of the configuration is either read by the code or in this table, and never both.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARNING = ("adapter_learning", "ia3_learning")


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Keys without effect."""

    sections: tuple[str, ...]
    """The sections that have the keys."""
    keys: tuple[str, ...]
    """The keys within each section."""
    reason: str
    """The reason shown to the user."""
    documented: tuple[object, ...]
    """Values that are accepted without a warning; the first is the default."""
    refused: bool = False
    """Whether any other value is an error rather than a warning."""
    fix_suffix: str = ""
    """Text to append to the fix."""
    foreign: bool = False
    """Whether the keys are NeMo's alone: they are taken out of a section before it is checked."""


_LOGS = "an evaluation logs nothing"
_BUCKETS = "there are no buckets: the small adapter gradients are reduced together"
_VALIDATION = "a validation computes val_loss; the evaluation stage computes metrics"
_LOGGERS = "exp_manager.create_tensorboard_logger, create_wandb_logger and others create the loggers"
_SAMPLER = "the data loader distributes samples to the data-parallel ranks"
_PLACE = "exp_manager.explicit_log_dir is the folder for results"
_SCHEDULE = "schedules depend on the number of steps, not on a metric"

IGNORED = (
    Ignored(sections=LEARNING, keys=("trainer.logger",), reason=_LOGGERS, documented=(False,), refused=True),
    Ignored(
        sections=LEARNING,
        keys=("trainer.enable_checkpointing",),
        reason="exp_manager.create_checkpoint_callback creates the checkpoints",
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("trainer.use_distributed_sampler", "trainer.replace_sampler_ddp"),
        reason=_SAMPLER,
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("trainer.accumulate_grad_batches",),
        reason="model.micro_batch_size and model.global_batch_size set the accumulation",
        documented=(1,),
        refused=True,
        fix_suffix=", and raise model.global_batch_size instead",
    ),
    Ignored(
        sections=LEARNING,
        keys=("exp_manager.exp_dir", "exp_manager.version"),
        reason=_PLACE,
        documented=(None,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("exp_manager.log_tflops_per_sec_per_gpu",),
        reason="it is not computed",
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.virtual_prompt_style",),
        reason="there are no virtual prompts: adapters are inserted into the layers",
        documented=("no-prompts",),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.sched.monitor",),
        reason=_SCHEDULE,
        documented=("val_loss", None),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.sched.reduce_on_plateau",),
        reason=_SCHEDULE,
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.gradient_as_bucket_view",),
        reason=_BUCKETS,
        documented=(False,),
    ),
    Ignored(sections=("evaluation",), keys=("trainer.logger",), reason=_LOGS, documented=(False,)),
    Ignored(
        sections=("evaluation",),
        keys=("split_string",),
        reason="a prediction is the text after the prompt, found by position",
        documented=("answer:", "answer :"),
    ),
    Ignored(
        sections=("evaluation",),
        keys=("inference.all_probs", "inference.compute_logprob"),
        reason="answers are written without probabilities",
        documented=(False,),
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.fp8",),
        reason="the base computes in trainer.precision, and FP8 would change its numbers",
        documented=(False, None),
        refused=True,
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.hidden_dropout", "model.attention_dropout", "model.ffn_dropout"),
        reason="the frozen base has no dropout",
        documented=(0.0, 0, None),
        refused=True,
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.data.min_seq_length",),
        reason="short samples are not left out",
        documented=(1, 0, None),
        refused=True,
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.megatron_amp_O2",),
        reason="adapters train in fp32 beside a base in trainer.precision, as with it",
        documented=(False,),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.mcore_gpt", "model.transformer_engine", "model.use_flash_attention"),
        reason="the base runs in this project's own layers",
        documented=(False, None),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.save_nemo_on_validation_end",),
        reason="the adapter is exported with every checkpoint",
        documented=(True,),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.report_validation_metric",),
        reason=_VALIDATION,
        documented=(False,),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.validation_metric",),
        reason=_VALIDATION,
        documented=("accuracy", None),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.p_tuning", "model.prompt_tuning"),
        reason="there are no virtual prompts",
        documented=(None,),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.grad_sync_dtype",),
        reason="the gradients of adapters are summed in fp32",
        documented=(None, "fp32", 32),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.bucket_cap_mb", "model.optim.overlap_grad_sync", "model.optim.overlap_param_sync"),
        reason=_BUCKETS,
        documented=(False, None),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.contiguous_grad_buffer", "model.optim.contiguous_param_sync"),
        reason=_BUCKETS,
        documented=(False, None),
        foreign=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.data.load_cache", "model.data.train_cache_data_path", "model.data.validation_cache_data_path"),
        reason="model.data.cache_dir is the folder of cached data",
        documented=(False, None),
        foreign=True,
    ),
    Ignored(
        sections=("evaluation",),
        keys=("trainer.log_every_n_steps",),
        reason=_LOGS,
        documented=(10,),
        foreign=True,
    ),
    Ignored(
        sections=("evaluation",),
        keys=("trainer.enable_checkpointing",),
        reason="an evaluation writes no checkpoints",
        documented=(False,),
        foreign=True,
    ),
    Ignored(
        sections=("evaluation",),
        keys=("trainer.use_distributed_sampler", "trainer.replace_sampler_ddp"),
        reason="an evaluation distributes its prompts itself",
        documented=(False,),
        foreign=True,
    ),
    Ignored(
        sections=("evaluation",),
        keys=("data.global_batch_size", "data.micro_batch_size", "data.num_workers"),
        reason="inference.batch_size is the number of prompts at a time, and answers do not depend on it",
        documented=(),
        foreign=True,
    ),
    Ignored(
        sections=("evaluation",),
        keys=("inference.end_strings",),
        reason="an answer ends at the end-of-text token",
        documented=(None, ["<|endoftext|>"]),
        refused=True,
        foreign=True,
    ),
)

_OF_LEARNING = ("model.model_parallel_size", "exp_manager.checkpoint_callback_params.model_parallel_size")
SIZE_COPIES = {**dict.fromkeys(LEARNING, _OF_LEARNING), "evaluation": ("model_parallel_size",)}
"""The unused copies of the product of the parallel sizes, by section."""
SIZES = "the parallel sizes determine it"
"""Why they are not read."""
