# SPDX-License-Identifier: Apache-2.0
"""AdapterHub's side of benchmarks/adapterhub.py, in an environment of its own: argument FOLDER, one per variant.

Each has `hf` (a transformers model), `ids.pt` [samples, tokens] and, unless the library makes the adapter itself,
`hub` (the adapter's folder). It writes `logits.pt`, and a `hub` with random weights that it made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import adapters
import torch
import transformers

_NAME = "adapter"


def main() -> None:
    for argument in sys.argv[1:]:
        folder = Path(argument)
        encodes = json.loads((folder / "hf/config.json").read_text())["model_type"] == "t5"
        kind = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(folder / "hf")
        adapters.init(model)
        if (folder / "hub").exists():
            model.load_adapter(str(folder / "hub"), load_as=_NAME, set_active=True)
        else:
            _make(model, folder / "hub", json.loads((folder / "norm.json").read_text()))
        model.eval()
        ids = torch.load(folder / "ids.pt", weights_only=True)
        half = ids.size(1) // 2
        inputs = {"input_ids": ids[:, :half], "decoder_input_ids": ids[:, half:]} if encodes else {"input_ids": ids}
        with torch.no_grad():
            torch.save(model(**inputs).logits, folder / "logits.pt")
    print(f"adapters {adapters.__version__}, transformers {transformers.__version__}")


def _make(model: torch.nn.Module, folder: Path, norm: str | None) -> None:
    """Add and save an adapter without biases, which adapters of NeMo do not have."""
    settings = {"ln_before": norm == "pre", "ln_after": norm == "post", "non_linearity": "swish"}
    model.add_adapter(_NAME, config=adapters.DoubleSeqBnConfig(reduction_factor=4, **settings))
    model.set_active_adapters(_NAME)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".adapters.{_NAME}." in name:
                norms = "norm" in name or (parameter.dim() == 1 and name.endswith("weight"))
                parameter.normal_(std=0.3) if parameter.dim() > 1 or norms else parameter.zero_()
    model.save_adapter(str(folder), _NAME)


if __name__ == "__main__":
    main()
