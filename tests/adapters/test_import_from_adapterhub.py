# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters from AdapterHub: what was exported comes back bit by bit, and all else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nemo_launcher.adapters.forms.adapterhub import export_adapterhub
from nemo_launcher.adapters.forms.from_adapterhub import import_adapterhub, is_adapterhub
from nemo_launcher.errors import UserError
from tests import forms
from tests.methods import with_setting

pytestmark = pytest.mark.unit

BOTTLENECKS = with_setting("norm_position")
CONFIG, WEIGHTS = "adapter_config.json", "pytorch_adapter.bin"


@pytest.fixture(scope="module", params=["llama_head_dim", "t5_gated"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp(request.param), request.param)


def exported(folder: Path, base: Path, method: str = BOTTLENECKS[0], **settings: Any) -> Path:
    adapter = forms.make_adapter(folder / "a.nemo", base, method, **settings)
    export_adapterhub(adapter, base, folder / "hub")
    return folder / "hub"


@pytest.mark.parametrize("norm", ["pre", "post", None])
@pytest.mark.parametrize("method", BOTTLENECKS)
def test_what_was_exported_comes_back(base: Path, method: str, norm: str | None, tmp_path: Path) -> None:
    layers = {"encoder": 1, "decoder": "0-1"} if "t5" in str(base.parent.name) else "0,2"
    hub = exported(tmp_path, base, method, norm_position=norm, layers=layers)
    assert is_adapterhub(hub)
    import_adapterhub(hub, base, tmp_path / "b.nemo")
    forms.assert_close(forms.logits_here(base, tmp_path / "b.nemo"), forms.logits_here(base, tmp_path / "a.nemo"))
    export_adapterhub(tmp_path / "b.nemo", base, tmp_path / "again")
    found, wanted = (torch.load(folder / WEIGHTS, weights_only=True) for folder in (tmp_path / "again", hub))
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    assert (tmp_path / "again" / CONFIG).read_text() == (hub / CONFIG).read_text()


def test_another_name_and_safetensors_are_read(base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    content = json.loads((hub / CONFIG).read_text())
    content["name"], content["config"]["non_linearity"] = "squad", "swish"
    (hub / CONFIG).write_text(json.dumps(content))
    tensors = torch.load(hub / WEIGHTS, weights_only=True)
    named = {name.replace(".adapters.adapter.", ".adapters.squad."): tensor.clone() for name, tensor in tensors.items()}
    save_file(named, hub / "adapter.safetensors")
    (hub / WEIGHTS).unlink()
    config, _ = import_adapterhub(hub, base, tmp_path / "b.nemo")
    assert config["imported_from"] == {"format": "adapterhub", "folder": "hub"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"non_linearity": "relu"}, "non_linearity: is 'relu'"),
        ({"original_ln_before": True}, "original_ln_before: is True"),
        ({"is_parallel": True, "scaling": 4.0}, "is_parallel: is True"),
        ({"scaling": "learned"}, "scaling: is 'learned'"),
        ({"use_gating": True}, "use_gating: is True"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln: is 'post_add'"),
        ({"phm_layer": True}, "phm_layer: is True"),
        ({"inv_adapter": "nice"}, "inv_adapter: is 'nice'"),
        ({"mh_adapter": False}, "mh_adapter: is False"),
        ({"ln_before": True, "ln_after": True}, "ln_after: is true beside ln_before"),
        ({"reduction_factor": {"1": 8, "default": 16}}, "reduction_factor: differs between layers"),
        ({"sparsity": 2}, "sparsity: is not known"),
        ({"ln_before": "yes"}, "ln_before: yes is neither true nor false"),
        ({"dropout": []}, r"adapter_config.json: dropout: \[\] is not a probability"),
        ({"dropout": 1}, "dropout: 1 is not a probability"),
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    content = json.loads((hub / CONFIG).read_text())
    content["config"] |= changes
    (hub / CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        import_adapterhub(hub, base, tmp_path / "b.nemo")
    assert not (tmp_path / "b.nemo").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": ["x"]}, f"hub/{CONFIG}: name: .* is not text"),
        ({"config": "pfeiffer"}, f"hub/{CONFIG}: has no section `config`"),
        ({"config": None}, f"hub/{CONFIG}: has no section `config`"),
    ],
)
def test_malformed_files_are_named(content: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    (hub / CONFIG).write_text(json.dumps(json.loads((hub / CONFIG).read_text()) | content))
    with pytest.raises(UserError, match=message):
        import_adapterhub(hub, base, tmp_path / "b.nemo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: (f"transformer.{name}", tensor), "hub: holds no adapter behind a sub-layer of this base"),
        (lambda name, tensor: (name, tensor[:0]), "hub: holds no tensor that ends in"),
    ],
)
def test_adapters_of_another_architecture_are_refused(change: Any, message: str, base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    tensors = torch.load(hub / WEIGHTS, weights_only=True)
    torch.save(dict(change(name, tensor) for name, tensor in tensors.items()), hub / WEIGHTS)
    with pytest.raises(UserError, match=message):
        import_adapterhub(hub, base, tmp_path / "b.nemo")


def test_other_tensors_are_refused(base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    tensors = torch.load(hub / WEIGHTS, weights_only=True)
    names = sorted(tensors)
    bias = next(name for name in names if name.endswith("adapter_up.bias"))
    absent = next(name for name in names if name.endswith("adapter_up.weight"))
    tensors[bias] = tensors[bias] + 1
    del tensors[absent]
    tensors["heads.default.weight"] = torch.ones(2, 2)
    torch.save(tensors, hub / WEIGHTS)
    with pytest.raises(UserError) as error:
        import_adapterhub(hub, base, tmp_path / "b.nemo")
    text = str(error.value)
    assert f"{bias}: is a bias that is not 0" in text
    assert f"{absent}: is absent" in text
    assert "heads.default.weight: is no part" in text


def test_code_in_the_weights_is_not_run(base: Path, tmp_path: Path) -> None:
    hub = exported(tmp_path, base)
    marker = tmp_path / "ran"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    torch.save({"x": Touch()}, hub / WEIGHTS)
    with pytest.raises(UserError):
        import_adapterhub(hub, base, tmp_path / "b.nemo")
    assert not marker.exists()
