# SPDX-License-Identifier: Apache-2.0
"""Suggest fixes: find the intended key, and test every override that a message suggests.

A suggestion is tested before it is printed: its keys must exist and accept its values.
"""

from __future__ import annotations

import difflib
import functools
import re
import shlex
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nemo_launcher.adapters.registry import setting_aliases
from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters import registry
from nemo_launcher.config.keys import all_keys, type_at
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections import TopLevel
from nemo_launcher.errors import Problem, did_you_mean, nearest
from nemo_launcher.launcher.elsewhere import ELSEWHERE, instead_of, stage_of

SECTIONS: dict[str, object] = {"cluster": registry.any_section(), **STAGES}
GROUPS = ("stages", "cluster_type", "preset", *SECTIONS)
# names in other programs -> the last part of our key
SYNONYMS = {
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "num_train_epochs": "max_epochs",
    "steps": "max_steps",
    "gpus": "devices",
    "num_gpus": "devices",
    "nodes": "num_nodes",
    "learning_rate": "lr",
    "batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "dtype": "precision",
    "walltime": "time_limit",
    "time": "time_limit",
    "max_new_tokens": "tokens_to_generate",
    "max_length": "max_seq_length",
    "seq_length": "encoder_seq_length",
    "train_file": "train_ds",
    "validation_file": "validation_ds",
    "base_model": "language_model_path",
    "model_path": "language_model_path",
    "restore_from_path": "language_model_path",
    "output_dir": "results_dir",
    "weight_decay_rate": "weight_decay",
    "warmup": "warmup_steps",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
}
_PLACEHOLDER = re.compile(r"\.\.\.|VALUE|TEXT|/path|/another|JOB_ID|^key=")
# key=value, bare or in shell quotes
_OVERRIDE = re.compile(r"""(?<![\w/.='"-])(?:'([+~]*[a-z_][\w.]*=[^'\n]*)'|"([+~]*[a-z_][\w.]*=[^"\n]*)"|"""
                       r"""([+~]*[a-z_][\w.]*=(?:\[[^\]\s'"]*\]|[^\s'",;)]+)))""")  # fmt: skip
_QUOTED_QUOTE = "'\"'\"'"
_KEY_AND_VALUE = re.compile(r"[+~]*[a-z_][\w.]*=")
_REFERENCE = re.compile(r"(?<!\\)\$\{")
_MEANT = re.compile(r"did you mean '([a-z_0-9]+(?:\.\w+)+)'\?")


def type_of(key: str) -> object:
    """Return the type of a full key's value; None if the configuration has no such key."""
    section, _, rest = key.partition(".")
    if section in SECTIONS:
        return type_at(SECTIONS[section], rest.split(".")) if rest else None
    return type_at(TopLevel, key.split("."))


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Return every full key of the configuration once, including sections."""
    keys = [*all_keys(TopLevel, "")]
    for name, schema in SECTIONS.items():
        keys += all_keys(schema, f"{name}.")
    return tuple(dict.fromkeys(keys))


def meant_key(key: str, stages: Iterable[str] = ()) -> str | None:
    """Return the existing key closest to an unknown full key; None if none is close.

    The last parts must be similar. The section and the parts between, which users often omit or shorten, decide among
    several candidates. stages: the chosen stages, which are preferred.
    """
    parts, chosen = key.split("."), set(stages)
    last = (setting_aliases() | SYNONYMS).get(parts[-1], parts[-1])
    scored = [(score, k) for k in known_keys() if (score := _likeness(parts, last, k, chosen)) > 0]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _likeness(parts: list[str], last: str, known: str, chosen: set[str]) -> float:
    section, _, tail = known.rpartition(".") if "." not in known else known.partition(".")
    end = _alike(last, known.rpartition(".")[2])
    if end < 0.7:
        return 0
    rest = [*parts[:-1], last]
    named = _alike(parts[0], section) if len(parts) > 1 and section else 0.0
    if len(parts) > 1 and section and min(len(parts[0]), len(section)) >= 4:
        named = max(named, 0.9 if section.startswith(parts[0]) or parts[0].startswith(section) else 0)
    with_section = named + _alike(".".join(rest[1:]), tail) if named >= 0.6 else 0.0
    without = (0.5 if section in chosen or not section else 0.3) + _alike(".".join(rest), tail)
    return 1.5 * end + max(with_section, without)


def _alike(a: str, b: str) -> float:
    return 1.0 if a == b else difflib.SequenceMatcher(None, a.casefold(), b.casefold()).ratio()


def unknown_key(key: str, stages: Iterable[str] = ()) -> Problem:
    """Return the problem of a key that does not exist. stages: the chosen stages."""
    section, _, rest = key.partition(".")
    top = [*GROUPS, *TopLevel.__dataclass_fields__]
    named = max(top, key=lambda name: _alike(name, key))
    meant = named if not rest and _alike(named, key) >= 0.75 else meant_key(key, stages)
    longer = [name for name in SECTIONS if name.startswith(section)]
    elsewhere = stage_of(key)
    if elsewhere is not None and (not rest or (meant is None and not longer)):
        return Problem(key, ELSEWHERE[elsewhere].what, f"leave it out: {ELSEWHERE[elsewhere].done_by}")
    if (instead := instead_of(key)) is not None:
        return Problem(key, "unknown key", instead)
    if meant is not None:
        return Problem(key, "unknown key", f"did you mean {meant!r}?")
    option = registry.suggested_option(rest) if section == "cluster" else None
    if option is not None:
        return Problem(key, "unknown key", option)
    if section not in SECTIONS and rest:
        section = (longer[0] if longer else nearest(section, SECTIONS)) or section
    above = ".".join([section, *rest.split(".")])
    while "." in above:
        above = above.rpartition(".")[0]
        below = [k.removeprefix(f"{above}.") for k in known_keys() if k.startswith(f"{above}.")]
        if below:
            return Problem(key, "unknown key", f"{above} has: {', '.join(k for k in below if '.' not in k)}")
    return Problem(key, "unknown key", did_you_mean(key, top))


def tried(problem: Problem) -> Problem:
    """Return the problem, with its fix replaced by the key's allowed values if a suggested override is not accepted."""
    if all(map(is_accepted, suggested(problem.fix))) and all(map(_exists, _MEANT.findall(problem.fix))):
        return problem
    return Problem(problem.where, problem.what, _allowed(problem.where.split(" ")[0]))


def suggested(fix: str) -> list[str]:
    """Return the overrides in a fix, without shell quotes and without placeholders."""
    if _QUOTED_QUOTE in fix:  # a command line, which only the shell's rules can split
        found = [word for word in shlex.split(fix) if _KEY_AND_VALUE.match(word)]
    else:
        found = ["".join(groups) for groups in _OVERRIDE.findall(fix)]
    return [text for text in found if not _PLACEHOLDER.search(text)]


def is_accepted(text: str) -> bool:
    """Return whether an override can be parsed, its key exists and its value fits."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except HydraException:
        return False
    key = parsed.key_or_group
    if key in GROUPS or key.startswith("hydra") or parsed.is_delete():
        return True
    kind = type_of(key)
    if kind is None:
        return "." not in key  # NAME=x, an environment variable
    value = parsed.value()
    refers = isinstance(value, str) and _REFERENCE.search(value) is not None
    return parsed.is_sweep_override() or refers or not check(value, kind, key)


def _exists(key: str) -> bool:
    return key.partition(".")[0] not in GROUPS or type_of(key) is not None or key in known_keys()


def _allowed(key: str) -> str:
    from nemo_launcher.config.schema import describe

    kind = type_of(key)
    return "" if kind is None else f"set it to {describe(kind)}"
