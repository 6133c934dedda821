# SPDX-License-Identifier: Apache-2.0
"""Imports for the server that the tests' jobs are forked from, so that jobs need not import them."""

import importlib

from nemo_launcher.adapters.registry import methods
from nemo_launcher.evaluation.metrics.registry import registered
from nemo_launcher.runtime.startup import quick_imports

with quick_imports():  # as each job does
    for method in methods().values():
        importlib.import_module(method.layer.partition(":")[0])
    registered()
    for name in (
        "nemo.core",
        "nemo_launcher.conversion.convert",
        "nemo_launcher.evaluation.run",
        "nemo_launcher.script",
        "nemo_launcher.training.nemo.fit",
        "nemo_launcher.training.run",
        "transformers.models.llama.modeling_llama",
    ):
        importlib.import_module(name)
