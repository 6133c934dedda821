# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters for AdapterHub: its formula, x + norm(up(act(down(norm(x))))), gives our logits.

The library itself pins another transformers, so it is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.adapters.forms.adapterhub import _factor, export_adapterhub
from nemo_launcher.errors import UserError
from tests import forms
from tests.methods import with_setting

pytestmark = pytest.mark.unit

BOTTLENECKS = with_setting("norm_position")
SUB_LAYERS = {
    "attention_adapters": "self_attn",
    "output_adapters": "mlp",
    "layer.0": "SelfAttention",
    "layer.1": "DenseReluDense",
    "layer.2": "DenseReluDense",
}
"""The module of a transformers layer behind which an adapter acts, by the part of its name before `.adapters.`."""


def bottleneck(x: Tensor, part: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return AdapterHub's output for x, [b, s, hidden]."""
    hidden = x
    if config["ln_before"]:
        hidden = F.layer_norm(x, x.shape[-1:], part["adapter_norm_before.weight"], part["adapter_norm_before.bias"])
    down = "adapter_down.1" if config["ln_before"] else "adapter_down.0"
    hidden = F.silu(F.linear(hidden, part[f"{down}.weight"], part[f"{down}.bias"]))
    hidden = F.linear(hidden, part["adapter_up.weight"], part["adapter_up.bias"])
    if config["ln_after"]:
        hidden = F.layer_norm(hidden, x.shape[-1:], part["adapter_norm_after.weight"], part["adapter_norm_after.bias"])
    return hidden + x


def with_adapters(model: Any, folder: Path) -> Any:
    """Add a folder's adapters to a transformers model."""
    config = json.loads((folder / "adapter_config.json").read_text())["config"]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in torch.load(folder / "pytorch_adapter.bin", weights_only=True).items():
        path, _, rest = name.partition(".adapters.adapter.")
        parts.setdefault(path, {})[rest] = tensor
    modules = dict(model.named_modules())
    for path, part in parts.items():
        ending = next(ending for ending in SUB_LAYERS if path.endswith(ending))
        layer = path.removesuffix(f".{ending}") if "adapters" in ending else path
        module = modules[f"{layer}.{SUB_LAYERS[ending]}"]

        def hook(_module: Any, _inputs: object, output: Any, part: Mapping[str, Tensor] = part) -> Any:
            if isinstance(output, tuple):
                return (bottleneck(output[0], part, config), *output[1:])
            return bottleneck(output, part, config)

        module.register_forward_hook(hook)
    return model


@pytest.fixture(scope="module", params=["llama_head_dim", "t5_gated"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("norm", ["pre", "post", None])
@pytest.mark.parametrize("method", BOTTLENECKS)
def test_its_formula_gives_our_logits(base: Path, method: str, norm: str | None, tmp_path: Path) -> None:
    layers = {"encoder": 1, "decoder": "0-1"} if "t5" in str(base.parent.name) else "0,2"
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method, norm_position=norm, layers=layers)
    assert export_adapterhub(adapter, base, tmp_path / "out") == (6 if isinstance(layers, dict) else 4)
    theirs, ours = forms.load_there(base.parent / "hf"), forms.logits_here(base, adapter)
    before = forms.logits_there(theirs)
    forms.assert_close(ours, forms.logits_there(with_adapters(theirs, tmp_path / "out")))
    assert (ours[..., : before.size(-1)] - before).abs().max() > 0.05 * before.abs().max()
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())["config"]
    assert config["leave_out"] == ([0, 4] if isinstance(layers, dict) else [1])
    assert (config["ln_before"], config["ln_after"]) == (norm == "pre", norm == "post")


@pytest.mark.parametrize(("hidden", "width"), [(2048, 24), (576, 50), (4096, 4096), (30, 7), (8192, 3)])
def test_the_library_finds_the_width(hidden: int, width: int) -> None:
    assert int(hidden // _factor(hidden, width)) == width


def test_other_bases_and_methods_are_refused(base: Path, tmp_path: Path) -> None:
    vectors = forms.make_adapter(tmp_path / "a.nemo", base, "ia3")
    with pytest.raises(UserError, match="holds ia3, which is no bottleneck"):
        export_adapterhub(vectors, base, tmp_path / "out")
    for name in ("gpt2_inner", "qwen2_tied"):
        other = forms.make_base(tmp_path / name, name)
        adapter = forms.make_adapter(tmp_path / "b.nemo", other, BOTTLENECKS[0])
        with pytest.raises(UserError, match=f"is a {name.partition('_')[0]}, for which AdapterHub"):
            export_adapterhub(adapter, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
