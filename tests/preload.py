# SPDX-License-Identifier: Apache-2.0
"""Imported by the server that the tests' jobs are forked from: what each of them would import itself."""

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
