# SPDX-License-Identifier: Apache-2.0
"""Numbers of the configuration that have to go together: devices, parallel sizes, batch sizes, the end of training."""

from __future__ import annotations

from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning


def check_family(stage: Stage) -> list[Problem]:
    """The chosen file belongs to a known model family."""
    if stage.family is None or stage.family in FAMILIES:
        return []
    own = f"{stage.name}/llama/{stage.choice.rpartition('/')[2]}.yaml"
    fix = f"{did_you_mean(stage.family, FAMILIES)}; a file's folder names its family, as in {own}"
    return [Problem(f"{stage.name}={stage.choice}", f"no model family is called {stage.family!r}", fix)]


def check_parallelism(stage: Stage) -> list[Problem]:
    """Devices, parallel sizes and batch sizes divide each other."""
    sizes = stage.parallel
    if sizes is None:
        return []
    tensor, pipeline = sizes.tensor_model_parallel_size, sizes.pipeline_model_parallel_size
    split = sizes.pipeline_model_parallel_split_rank
    if stage.family == "t5" and pipeline > 1 and split and not 0 < split < pipeline:
        key = stage.parallel_key("pipeline_model_parallel_split_rank")
        what = f"{split}: of {pipeline} pipeline stages the decoder begins at one of 1 to {pipeline - 1}"
        return [Problem(key, what, f"{key}={pipeline // 2}")]
    if isinstance(sizes, Ia3Model) and sizes.sequence_parallel and tensor == 1:
        key = stage.parallel_key("sequence_parallel")
        what = "needs a tensor_model_parallel_size above 1, whose ranks share the tokens"
        return [Problem(key, what, f"{key}=False")]
    devices = stage.devices * stage.num_nodes
    if devices % (tensor * pipeline):
        what = (
            f"{stage.devices} devices on {stage.num_nodes} node(s) make {devices} ranks, which do not divide into "
            f"model replicas of {tensor} (tensor) x {pipeline} (pipeline)"
        )
        size_key = stage.parallel_key(f"{'tensor' if tensor >= pipeline else 'pipeline'}_model_parallel_size")
        fix = f"give a multiple of {tensor * pipeline} devices, or lower {size_key}"
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
    """Training ends, and each option of its trainer and exp_manager has its effect."""
    return option_problems(Loaded(stage.section, stage.config), stage.key)


def check_one_process(stage: Stage) -> list[Problem]:
    """A conversion is one process's work."""
    return [
        Problem(stage.key(f"trainer.{name}"), "one process converts a model", f"{stage.key(f'trainer.{name}')}=1")
        for name, value in (("devices", stage.devices), ("num_nodes", stage.num_nodes))
        if isinstance(stage, Conversion) and value != 1
    ]


def check_recomputation(stage: Learning) -> list[Problem]:
    """`activations_checkpoint_*` say together which layers are computed a second time."""
    names = ("granularity", "method", "num_layers")
    keys = {name: stage.key(f"model.activations_checkpoint_{name}") for name in names}
    granularity, method, count = (getattr(stage.section.model, f"activations_checkpoint_{name}") for name in names)
    if granularity != "full":
        given = [keys[name] for name, value in (("method", method), ("num_layers", count)) if value is not None]
        fix = f"{keys['granularity']}=full, or leave it out"
        return [Problem(key, f"says nothing without {keys['granularity']}=full", fix) for key in given]
    problems = []
    if stage.section.model.nemo_compat:
        what = "cannot go with nemo_compat: the base's dropout would be drawn anew when a layer is computed again"
        problems.append(Problem(keys["granularity"], what, f"{keys['granularity']}=null"))
    if method is None:
        fix = f"{keys['method']}=uniform for all layers, or block for the first {keys['num_layers']}"
        problems.append(Problem(keys["method"], "is needed with granularity full", fix))
    elif method == "block" and count is None:
        problems.append(Problem(keys["num_layers"], "is needed with method block", f"{keys['num_layers']}=8"))
    elif method == "uniform" and count not in (None, 1):
        what = f"{count} layers cannot be one unit: each layer is computed again from its own input"
        problems.append(Problem(keys["num_layers"], what, f"{keys['num_layers']}=1"))
    return problems


def check_attention_backend(stage: Learning) -> list[Problem]:
    """A T5's attention has biases that FlexAttention's rows do not."""
    if stage.family != "t5" or stage.section.model.attention_backend != "flex":
        return []
    key = stage.key("model.attention_backend")
    return [Problem(key, "flex is for GPT and Llama: T5 adds relative positions to its scores", f"{key}=auto")]
