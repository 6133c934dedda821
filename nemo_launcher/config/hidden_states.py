# SPDX-License-Identifier: Apache-2.0
"""What makes it impossible to store hidden states (model.data.cache_hidden), for the launcher and the job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nemo_launcher.config.overrides import override
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.errors import Problem

KEY = "model.data.cache_hidden"
KeyOf = Callable[[str], str]


def setting_problems(model: Ia3Model, key: KeyOf = str) -> list[Problem]:
    """Return the settings that contradict stored hidden states; key: returns the full key for messages."""
    where = key(KEY)
    if not model.data.cache_hidden:
        return []
    problems = []
    if model.pipeline_model_parallel_size != 1:
        fix = f"{key('model.pipeline_model_parallel_size')}=1, or {where}=False"
        problems.append(Problem(where, "hidden states are not stored for a model in several pipeline stages", fix))
    if model.splits_tokens:
        fix = f"{key('model.sequence_parallel')}=False, or {where}=False"
        problems.append(Problem(where, "hidden states are not stored with sequence parallelism", fix))
    if model.data.cache_dir is False:
        fix = f"{key('model.data.cache_dir')}=null, or {where}=False"
        problems.append(Problem(where, f"needs a folder, but {key('model.data.cache_dir')} is False", fix))
    return problems


def stored_stack(stacks: Iterable[str]) -> str:
    """Return the stack whose hidden states are stored: the one that reads prompts."""
    return "encoder" if "encoder" in stacks else "decoder"


def layer_problem(stack: str, counts: Mapping[str, int], layers_key: str, key: KeyOf = str) -> Problem:
    """Return the problem of adapters in the first layer of a stack: nothing is left to store.

    counts: the number of layers of each stack; layers_key: the setting that chooses layers.
    """
    where, least = key(KEY), min(counts.values())
    named = f"the {stack}'s layer 0" if len(counts) > 1 else "layer 0"
    upper = f"{override(key(layers_key), f'{least // 2}-{least - 1}')} for the upper half, or " if least > 1 else ""
    what = f"{named} has adapters, so there is no layer below them whose output could be stored"
    return Problem(where, what, f"{upper}{where}=False")


def dropout_problem(rates: tuple[float, float], key: KeyOf = str) -> Problem:
    """Return the problem of a base that drops activations while adapters train; rates: hidden and attention."""
    what = f"{key('model.nemo_compat')}=True trains with the base's dropout ({max(rates)}): states differ in each epoch"
    return Problem(key(KEY), what, f"{key('model.nemo_compat')}=False, or {key(KEY)}=False")
