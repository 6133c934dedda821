# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters that go to AdapterHub's library and come from it: the logits of both sides, as JSON.

    python benchmarks/adapterhub.py --peer-python PYTHON --json FILE

PYTHON has `adapters` 1.3, which pins another version of transformers. The models are random, of four layers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_launcher.adapters.forms.adapterhub import export_adapterhub
from nemo_launcher.adapters.forms.from_adapterhub import import_adapterhub
from tests import forms
from tests.methods import with_setting

_BASES = ("llama_head_dim", "t5", "t5_gated")
_METHODS = with_setting("norm_position")
_NORMS = ("pre", "post", None)


@dataclass(frozen=True)
class Variant:
    """One adapter on one base."""

    folder: Path
    """Where both sides exchange files."""
    base: Path
    """The base."""
    facts: dict[str, str | None]
    """What the result says of it."""

    @property
    def is_export(self) -> bool:
        """Whether the adapter is made here."""
        return self.facts["direction"] == "export"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer-python", required=True, help="the Python that has adapters 1.3")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        variants = [variant for name in _BASES for variant in _variants(Path(folder) / name, name)]
        peer = Path(__file__).with_name("adapterhub_peer.py")
        command = [options.peer_python, str(peer), *(str(variant.folder) for variant in variants)]
        versions = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        rows = [variant.facts | _compared(variant) for variant in variants]
    text = json.dumps({"versions": versions, "rows": rows}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def _variants(folder: Path, name: str) -> list[Variant]:
    """Return an export of each method and norm, and an import of each norm."""
    base, variants = forms.make_base(folder, name), []
    config = json.loads((folder / "hf/config.json").read_text())
    if "scale_decoder_outputs" in config:  # transformers 4 knows it under the other name, 5 always writes True
        config["tie_word_embeddings"] = config["scale_decoder_outputs"]
        (folder / "hf/config.json").write_text(json.dumps(config))
    for norm in _NORMS:
        for method in (*_METHODS, None):
            own = folder / f"{method}-{norm}"
            own.mkdir()
            (own / "hf").symlink_to(folder / "hf")
            torch.save(forms.IDS, own / "ids.pt")
            (own / "norm.json").write_text(json.dumps(norm))
            if method is not None:
                adapter = forms.make_adapter(own / "adapter.nemo", base, method, norm_position=norm)
                export_adapterhub(adapter, base, own / "hub")
            direction = "import" if method is None else "export"
            facts = {"base": name, "direction": direction, "method": method, "norm": norm}
            variants.append(Variant(own, base, facts))
    return variants


def _compared(variant: Variant) -> dict[str, float]:
    """Return the largest difference of the logits, and the largest logit."""
    adapter = variant.folder / "adapter.nemo"
    if not variant.is_export:
        import_adapterhub(variant.folder / "hub", variant.base, adapter)
    wanted = torch.load(variant.folder / "logits.pt", weights_only=True)[0]
    found = forms.logits_here(variant.base, adapter)[..., : wanted.size(-1)]
    return {"logits": float((found - wanted).abs().max()), "largest_logit": float(wanted.abs().max())}


if __name__ == "__main__":
    main()
