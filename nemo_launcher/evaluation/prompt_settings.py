# SPDX-License-Identifier: Apache-2.0
"""The prompt settings and templates of the console verbs: those of an adapter, as changed by options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.config.keys import hints
from nemo_launcher.config.literal import literal_config, plain_mapping
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections.common import Count
from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.config.sections.other import Inference
from nemo_launcher.data.assumed import assumed
from nemo_launcher.data.given_records import Source
from nemo_launcher.data.record_forms import TEMPLATES
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts

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


def _types(schema: type[LearningData | Inference], prefix: str, names: Sequence[str]) -> dict[str, object]:
    return {f"{prefix}.{name}": hints(schema)[name] for name in names}


# The keys that --set may change, with the launcher's types: they determine prompts and answers.
_SETTABLE: dict[str, object] = {
    "nemo_compat": bool,
    "encoder_seq_length": Count,
    "decoder_seq_length": Count,
    **_types(LearningData, "data", _DATA),
    **_types(Inference, "inference", _INFERENCE),
}


def with_settings(config: Mapping[str, object], overrides: DictConfig) -> dict[str, object]:
    """Return an adapter's configuration as changed by settings; `inference` comes from the settings alone."""
    own = {key: value for key, value in config.items() if key != "inference"}
    return plain_mapping(OmegaConf.merge(literal_config(own), overrides))


def templates_of(
    prompts: AdapterPrompts, template: str | None, answer_field: str | None, sources: Iterable[Source]
) -> list[TaskTemplate]:
    """Return the template that options give, or else those of the adapter, or those that records need.

    sources: data files, or records in memory. Raises UserError if there is none.
    """
    if template is not None:
        entry = {"taskname": "prompt", "prompt_template": template, "answer_field": answer_field}
        return [TaskTemplate.from_config(entry | {"answer_only_loss": answer_field is not None}, "--template")]
    if not prompts.task_templates:
        found = assumed([], sources, prompts.columns, for_train=False)
        if found is not None:
            return [TaskTemplate.from_config(TEMPLATES[form]) for form in found.forms]
        fix = "--template 'question: {question} answer: {answer}' --answer-field answer"
        raise UserError(Problem("--template", "is required without an adapter", fix))
    return prompts.templates()


def parse_settings(settings: Sequence[str]) -> DictConfig:
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
