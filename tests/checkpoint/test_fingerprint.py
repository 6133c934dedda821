# SPDX-License-Identifier: Apache-2.0
"""A base is recognized in any storage format; adapters of other bases are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nemo_launcher.adapters.archive import load_adapter, save_adapter, save_safetensors
from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.sizes import ParallelSizes
from tests.engine import BOTTLENECK, adapted, tiny_gpt_nemo
from tests.shared import shared_path
from tests.world import run_world

pytestmark = pytest.mark.unit


def test_the_same_base_at_other_parallel_sizes_has_the_same_fingerprint() -> None:
    one, two = (load_base(shared_path(f"oracle/base_gpt{size}.nemo")) for size in ("", "_tp2"))
    assert (one.fingerprint, one.checksum) == (two.fingerprint, two.checksum)


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


def test_every_number_of_a_base_counts(tmp_path: Path) -> None:
    """Not only the few values in the fingerprint: new rows of an embedding, a layer that was trained further."""
    first = tiny_gpt_nemo(tmp_path / "first/base.nemo")
    base, adapters = adapted(first, {"adapter_tuning": BOTTLENECK})
    marks = {"base_fingerprint": base.fingerprint, "base_checksum": base.checksum}
    save_adapter(tmp_path / "a.nemo", {"adapter_tuning": BOTTLENECK} | marks, adapters.state_dict())
    with Archive(first) as archive:
        members = {name: archive.read(name, 1 << 20) for name in archive.names - {CONFIG_NAME, WEIGHTS_NAME}}
        stored, config = read_tensors(archive, WEIGHTS_NAME), archive.config()
    for name in ("word_embeddings.weight", "mlp.linear_fc1.weight"):
        changed = {key: value.clone() for key, value in stored.items()}
        (weight, *_) = (changed[key] for key in changed if key.endswith(name))
        weight[-9, -1] += 1  # the last rows of an embedding may be padding
        other = tmp_path / "other.nemo"
        write_archive(other, config, members | {WEIGHTS_NAME: lambda stream, w=changed: torch.save(w, stream)})
        edited = load_base(other)
        assert edited.fingerprint == base.fingerprint
        assert edited.checksum != base.checksum
        with pytest.raises(UserError, match="in which some weights have other values"):
            load_adapter(tmp_path / "a.nemo", edited)
    load_adapter(tmp_path / "a.nemo", load_base(first))


@pytest.mark.integration
def test_the_checksum_is_the_same_at_any_size(tmp_path: Path) -> None:
    base = tiny_gpt_nemo(tmp_path / "base.nemo")
    for job in run_world(2, _print_checksum, (base, ParallelSizes(2, 1)), tmp_path):
        assert job.output.splitlines()[-1] == load_base(base).checksum
    assert load_base(base, dtype=torch.bfloat16).checksum == load_base(base).checksum


def _print_checksum(path: Path, sizes: ParallelSizes) -> None:
    print(load_base(path, sizes=sizes).checksum)
