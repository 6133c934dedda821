# SPDX-License-Identifier: Apache-2.0
"""The console verb `import`: an adapter of another program as a `.nemo`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from nemo_launcher.errors import UserError
from nemo_launcher.files.new_folder import new_nemo
from nemo_launcher.runtime.startup import quick_imports

_TEXT = "convert an adapter of PEFT (IA3 or LoRA) or AdapterHub (bottleneck) to a .nemo adapter"


def _add_import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="DIR", help="the folder with adapter_config.json and the weights")
    verb.add_argument("--base", required=True, metavar="FILE.nemo", help="its base model, converted from Hugging Face")
    verb.add_argument("--output", required=True, metavar="ADAPTER.nemo", help="the new file; it must not exist")
    verb.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    problems = new_nemo(options.output, "--output")
    if problems:
        raise UserError(problems)
    with quick_imports():
        from nemo_launcher.adapters.forms.from_adapterhub import import_adapterhub, is_adapterhub
        from nemo_launcher.adapters.forms.peft import import_peft
        from nemo_launcher.adapters.registry import method_of
    read = import_adapterhub if is_adapterhub(options.folder) else import_peft
    config, count = read(options.folder, options.base, options.output)
    print(f"{options.output}: {method_of(config).name} with {count:,} parameters from {options.folder}")
    return 0


IMPORT_VERBS = {"import": (_add_import, _TEXT)}
