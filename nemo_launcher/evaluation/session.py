# SPDX-License-Identifier: Apache-2.0
"""A base model, with or without an adapter, and how its prompts are made: what the console verbs share."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.checkpoint.outline import is_peft
from nemo_launcher.config.literal import literal_config
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections.common import Count
from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.config.sections.other import Inference
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.runtime.precision import dtype_of

_DATA = (
    "add_bos",
    "add_eos",
    "max_seq_length",
    "add_sentinel_to_input",
    "add_eos_to_decoder_output",
    "decoder_starts_with_pad",
)
_INFERENCE = (
    "add_BOS",
    "greedy",
    "top_k",
    "top_p",
    "temperature",
    "repetition_penalty",
    "tokens_to_generate",
    "min_tokens_to_generate",
    "batch_size",
)


def _types(schema: type, prefix: str, names: Sequence[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return {f"{prefix}.{name}": hints[name] for name in names}


# What --set changes: the keys that decide how prompts are made and answered, with the types the launcher gives them.
_SETTABLE: dict[str, Any] = {
    "nemo_compat": bool,
    "encoder_seq_length": Count,
    "decoder_seq_length": Count,
    **_types(LearningData, "data", _DATA),
    **_types(Inference, "inference", _INFERENCE),
}


@dataclass(frozen=True, slots=True)
class Session:
    """A model that answers prompts."""

    base: Base
    """The base model, with the adapter in it when there is one."""
    config: dict[str, Any]
    """The adapter's configuration, changed by --set; empty without an adapter."""
    adapters: AdapterSet | None = None
    """The adapter; None: the base model alone."""

    @classmethod
    def open(cls, base: str | Path, adapter: str | Path | None, *, precision: str, settings: Sequence[str]) -> Session:
        """Load the files; settings: `key=value` with a key of the adapter's configuration.

        Raises UserError for unreadable files, an adapter of another base and unknown keys.
        """
        dtype = dtype_of(precision, "--precision")
        overrides = _parsed(settings)
        loaded = load_base(base, dtype=dtype)
        adapters, config = load_adapter(adapter, loaded) if adapter is not None else (None, {})
        config.pop("inference", None)  # the command line decides, not what an archive happens to hold
        merged: Any = OmegaConf.to_container(OmegaConf.merge(literal_config(config), overrides), resolve=True)
        return cls(loaded, merged, adapters)

    @property
    def nemo_compat(self) -> bool:
        """Whether prompts and decoding follow NeMo to the letter."""
        return bool(self.config.get("nemo_compat", False))

    def encoder(self, inference: Mapping[str, object] | None = None) -> Any:
        """Return the family's prompt encoder: for training's samples, or with an `inference` section for prompts."""
        return self.base.family.prompt_encoder(
            self.base.tokenizer,
            self.base.shape,
            self.config.get("data") or {},
            encoder_seq_length=self.config.get("encoder_seq_length") if inference is None else None,
            nemo_compat=self.nemo_compat,
            inference=inference,
        )

    def samples(self, path: str | Path, template: str | None, answer_field: str | None, encoder: Any) -> list[Any]:
        """Return the samples of a JSON Lines file, in order.

        template, answer_field: a prompt template and the name of its answer; None: the adapter's task_templates, by
        each record's taskname, which may be absent where there is one template. Raises UserError for records that the
        template cannot be filled from, and for prompts that are too long.
        """
        templates = self._templates(template, answer_field)
        default = templates[0].taskname if len(templates) == 1 else None
        return encode_files(
            [path],
            templates,
            encoder,
            max_dropped_share=None,
            default_taskname=default,
            any_taskname=template is not None or is_peft(self.config),
            report=lambda remark: print(remark, file=sys.stderr),  # standard output holds the results alone
        )

    def _templates(self, template: str | None, answer_field: str | None) -> list[TaskTemplate]:
        if template is not None:
            entry = {"taskname": "prompt", "prompt_template": template, "answer_field": answer_field}
            return [TaskTemplate.from_config(entry | {"answer_only_loss": answer_field is not None}, "--template")]
        entries = self.config.get("task_templates")
        if not entries:
            fix = "--template 'question: {question} answer: {answer}' --answer-field answer"
            raise UserError(Problem("--template", "without an adapter there is none", fix))
        return [TaskTemplate.from_config(entry) for entry in entries]


def _parsed(settings: Sequence[str]) -> Any:
    """Return the settings as a configuration. Raises UserError with every malformed one, unknown key and wrong type."""
    problems = []
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals:
            problems.append(Problem(f"--set {setting}", "is not key=value", "such as --set data.add_bos=True"))
        elif key not in _SETTABLE:
            problems.append(Problem(f"--set {key}", "no such key", did_you_mean(key, _SETTABLE)))
        else:
            problems += _type_problems(key, setting)
    if problems:
        raise UserError(problems)
    return OmegaConf.from_dotlist(list(settings))


def _type_problems(key: str, setting: str) -> list[Problem]:
    try:
        value = OmegaConf.select(OmegaConf.from_dotlist([setting]), key)
    except (OmegaConfBaseException, YAMLError) as error:
        return [Problem(f"--set {setting}", str(error).splitlines()[0])]
    return check(value, _SETTABLE[key], f"--set {key}")
