# SPDX-License-Identifier: Apache-2.0
"""Check that the numbers of a configuration are consistent: devices, parallel and batch sizes, training length."""

from __future__ import annotations

from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning


def check_family(stage: Stage) -> list[Problem]:
    """Check that the chosen file belongs to a known model family."""
    if stage.family is None or stage.family in FAMILIES:
        return []
    own = f"{stage.name}/llama/{stage.choice.rpartition('/')[2]}.yaml"
    fix = f"{did_you_mean(stage.family, FAMILIES)}; a file's folder names its family, as in {own}"
    return [Problem(f"{stage.name}={stage.choice}", f"no model family is called {stage.family!r}", fix)]


def check_parallelism(stage: Stage) -> list[Problem]:
    """Check that devices, parallel sizes and batch sizes divide evenly."""
    sizes = stage.parallel
    if sizes is None:
        return []
    tensor, pipeline = sizes.tensor_model_parallel_size, sizes.pipeline_model_parallel_size
    split = sizes.pipeline_model_parallel_split_rank
    if stage.family == "t5" and pipeline > 1 and split and not 0 < split < pipeline:
        key = stage.parallel_key("pipeline_model_parallel_split_rank")
        what = f"is {split}, but with {pipeline} pipeline stages the decoder must start at stage 1 to {pipeline - 1}"
        return [Problem(key, what, f"{key}={pipeline // 2}")]
    devices = stage.devices * stage.num_nodes
    if devices % (tensor * pipeline):
        what = (
            f"{stage.devices} devices on {stage.num_nodes} node(s) give {devices} ranks, which do not divide into "
            f"model replicas of {tensor} (tensor) x {pipeline} (pipeline)"
        )
        size_key = stage.parallel_key(f"{'tensor' if tensor >= pipeline else 'pipeline'}_model_parallel_size")
        fix = f"use a multiple of {tensor * pipeline} devices, or lower {size_key}"
        return [Problem(stage.key("trainer.devices"), what, fix)]
    if not isinstance(sizes, Ia3Model):
        return []
    replicas = devices // (tensor * pipeline)
    micro_step = sizes.micro_batch_size * replicas
    if sizes.global_batch_size % micro_step:
        nearby = max(micro_step, round(sizes.global_batch_size / micro_step) * micro_step)
        key = stage.key("model.global_batch_size")
        what = (
            f"{sizes.global_batch_size} is not a multiple of micro_batch_size {sizes.micro_batch_size} "
            f"x {replicas} data-parallel replica(s)"
        )
        return [Problem(key, what, f"{key}={nearby}")]
    return []


def check_training_length(stage: Learning) -> list[Problem]:
    """Check that training ends, and that the options of its trainer and exp_manager are valid."""
    return option_problems(Loaded(stage.section, stage.config), stage.key)


def check_one_process(stage: Stage) -> list[Problem]:
    """Check that a conversion has one process."""
    return [
        Problem(stage.key(f"trainer.{name}"), "must be 1 for a conversion", f"{stage.key(f'trainer.{name}')}=1")
        for name, value in (("devices", stage.devices), ("num_nodes", stage.num_nodes))
        if isinstance(stage, Conversion) and value != 1
    ]


def check_recomputation(stage: Learning) -> list[Problem]:
    """Check that the keys `activations_checkpoint_*` select layers to recompute consistently."""
    names = ("granularity", "method", "num_layers")
    keys = {name: stage.key(f"model.activations_checkpoint_{name}") for name in names}
    granularity, method, count = (getattr(stage.section.model, f"activations_checkpoint_{name}") for name in names)
    if granularity != "full":
        given = [keys[name] for name, value in (("method", method), ("num_layers", count)) if value is not None]
        fix = f"{keys['granularity']}=full, or leave it out"
        return [Problem(key, f"has no effect without {keys['granularity']}=full", fix) for key in given]
    problems = []
    if stage.section.model.nemo_compat:
        what = "cannot be combined with nemo_compat: recomputing a layer would draw a different dropout mask"
        problems.append(Problem(keys["granularity"], what, f"{keys['granularity']}=null"))
    if method is None:
        fix = f"{keys['method']}=uniform for all layers, or block for the first {keys['num_layers']}"
        problems.append(Problem(keys["method"], "is required with granularity full", fix))
    elif method == "block" and count is None:
        problems.append(Problem(keys["num_layers"], "is required with method block", f"{keys['num_layers']}=8"))
    elif method == "uniform" and count not in (None, 1):
        what = f"is {count}, but each layer is recomputed separately from its own input"
        problems.append(Problem(keys["num_layers"], what, f"{keys['num_layers']}=1"))
    return problems


def check_attention_backend(stage: Learning) -> list[Problem]:
    """Check that a T5 does not use FlexAttention, which lacks T5's attention biases."""
    if stage.family != "t5" or stage.section.model.attention_backend != "flex":
        return []
    key = stage.key("model.attention_backend")
    return [Problem(key, "flex supports GPT and Llama only: T5 has relative position biases", f"{key}=auto")]
