# SPDX-License-Identifier: Apache-2.0
"""Imports for the server that the tests' jobs are forked from, so that jobs need not import them."""

import importlib

for name in (
    "nemo.core",
    "nemo_launcher.adapters.methods.bottleneck.layer",
    "nemo_launcher.adapters.methods.ia3.layer",
    "nemo_launcher.conversion.convert",
    "nemo_launcher.evaluation.run",
    "nemo_launcher.training.nemo.fit",
    "nemo_launcher.training.run",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
