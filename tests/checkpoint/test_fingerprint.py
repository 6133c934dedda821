"""A base is known again whatever it is stored like; an adapter of another base is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nemo_launcher.adapters.archive import load_adapter, save_adapter, save_safetensors
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.errors import UserError
from tests.engine import BOTTLENECK, adapted, tiny_gpt_nemo
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def test_the_same_base_at_other_parallel_sizes_has_the_same_fingerprint() -> None:
    one, two = (load_base(shared_path(f"oracle/base_gpt{size}.nemo")) for size in ("", "_tp2"))
    assert one.fingerprint == two.fingerprint


def test_every_base_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    bases = [tiny_gpt_nemo(tmp_path / f"{seed}/base.nemo", seed=seed) for seed in (0, 1)]
    assert len({load_base(base).fingerprint for base in bases}) == 2


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK, "language_model_path": "/models/other.nemo"}
    base, adapters = adapted(tiny_base, config)
    save_adapter(tmp_path / "own.nemo", config | {"base_fingerprint": base.fingerprint}, adapters.state_dict())
    save_adapter(tmp_path / "other.nemo", config | {"base_fingerprint": "sha256:0"}, adapters.state_dict())
    load_adapter(tmp_path / "own.nemo", load_base(tiny_base))
    with pytest.raises(UserError, match=r"other\.nemo: belongs to another base model .*/models/other\.nemo"):
        load_adapter(tmp_path / "other.nemo", load_base(tiny_base))


def test_the_safetensors_copy_holds_the_same(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK}
    state = adapted(tiny_base, config)[1].state_dict()
    save_safetensors(tmp_path / "a.safetensors", config, state)
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        assert '"adapter_dim": 4' in stored.metadata()["model_config"]
        assert set(stored.keys()) == {f"{key}.{name}" for key, tensors in state.items() for name in tensors}
        for key, tensors in state.items():
            for name, tensor in tensors.items():
                assert torch.equal(stored.get_tensor(f"{key}.{name}"), tensor)
