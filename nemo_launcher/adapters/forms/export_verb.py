# SPDX-License-Identifier: Apache-2.0
"""The console verb `export`: an adapter in the form of another program. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.new_folder import existing
from nemo_launcher.runtime.startup import quick_imports

_TEXT = "write an adapter in the form of another program"


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("adapter", metavar="ADAPTER.nemo", help="an adapter of this project or of NeMo")
    verb.add_argument("--base", required=True, metavar="FILE.nemo", help="the base model that it was trained in")
    forms = "; ".join(f"{name}: {what}" for name, (_, what) in _FORMS.items())
    verb.add_argument("--to", required=True, choices=_FORMS, help=forms)
    verb.add_argument("--output", required=True, metavar="DIR", help="the new folder; it must not exist")
    dtypes = "with --to hf: the type of the weights (default: the base's); the adapter is folded in with 32 bits"
    verb.add_argument("--dtype", choices=_DTYPES, help=dtypes)
    results = "with --to hf or peft: the results of an evaluation of the adapter, whose scores the model card has"
    verb.add_argument("--results", metavar="DIR", help=results)
    verb.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    problems = existing(options.output, "--output")
    if options.dtype is not None and options.to != "hf":
        problems.append(Problem("--dtype", f"has no effect with --to {options.to}", "leave it out, or use --to hf"))
    if options.results is not None and options.to not in _WITH_CARD:
        what = f"has no effect with --to {options.to}, which has no model card"
        problems.append(Problem("--results", what, "leave it out, or use --to hf"))
    if problems:
        raise UserError(problems)
    write, _ = _FORMS[options.to]
    print(write(options))
    return 0


def _to_peft(options: argparse.Namespace) -> str:
    with quick_imports():
        from nemo_launcher.adapters.forms.peft import export_peft
    opened = export_peft(options.adapter, options.base, options.output, options.results)
    what = f"{opened.adapters.method.name} in {len(opened.changes)} linear layers of {opened.target.form.layout.kind}"
    return f"{options.output}: {what}; load it with PeftModel.from_pretrained(model, {str(options.output)!r})"


def _to_hf(options: argparse.Namespace) -> str:
    with quick_imports():
        import torch

        from nemo_launcher.adapters.forms.folded import export_folded
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    opened = export_folded(options.adapter, options.base, options.output, dtype, options.results)
    form = opened.target.form.layout.architecture
    return f"{options.output}: {form} with {opened.adapters.method.name} in {len(opened.changes)} linear layers"


def _to_adapterhub(options: argparse.Namespace) -> str:
    with quick_imports():
        from nemo_launcher.adapters.forms.adapterhub import export_adapterhub
    count = export_adapterhub(options.adapter, options.base, options.output)
    return f"{options.output}: {count} adapters; load them with model.load_adapter({options.output!r}, set_active=True)"


_DTYPES = ("float32", "bfloat16", "float16")
_WITH_CARD = ("hf", "peft")
_FORMS: dict[str, tuple[Callable[[argparse.Namespace], str], str]] = {
    "peft": (_to_peft, "a folder for PEFT, of IA3 or LoRA"),
    "adapterhub": (_to_adapterhub, "a folder for AdapterHub's library adapters, of bottleneck adapters"),
    "hf": (_to_hf, "the base as a folder for transformers, with IA3 or LoRA in its weights"),
}

EXPORT_VERBS = {"export": (_add_export, _TEXT)}
