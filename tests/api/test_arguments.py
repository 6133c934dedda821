# SPDX-License-Identifier: Apache-2.0
"""Arguments of wrong types and contents are told as UserError with the argument's name, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher import Model, UserError, train

pytestmark = pytest.mark.unit

HALF = "\ud800"


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Model:
    return Model.load(tiny_base)


@pytest.mark.parametrize("value", [None, 3, b"base.nemo", ["base.nemo"], "", "  ", HALF, "/" + "n" * 300, "s3://a/b"])
def test_a_file_is_a_path(value: Any, tiny_base: Path, model: Model) -> None:
    with pytest.raises(UserError, match=r"^base: "):
        Model.load(value)
    with pytest.raises(UserError, match=r"^adapter: "):
        model.load_adapter(value)
    if value is not None:
        with pytest.raises(UserError, match=r"^adapter: "):
            Model.load(tiny_base, adapter=value)


@pytest.mark.parametrize("value", [None, 3, "data.add_bos=True", [None], [3]])
def test_settings_are_a_mapping_or_texts(value: Any, tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"^settings: is "):
        Model.load(tiny_base, settings=value)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (None, "records: is None"),
        (3, "records: is of type int"),
        ([], "prompts: are empty"),
        (["a", HALF], r"prompts\[1\]: has half of a surrogate pair"),
        (["a", 3], r"records: \[0\] is str"),
    ],
)
def test_prompts_are_texts_or_records(prompts: Any, said: str, model: Model) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        model.generate(prompts)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (1.5, "3", None, True)) for name in ("tokens_to_generate", "min_tokens_to_generate", "seed")),
        ("top_k", (1.5, "3", True)),
        *((name, ("1", True, [1])) for name in ("top_p", "temperature", "repetition_penalty")),
        ("sample", ("no", 1, None)),
        ("batch_size", (1.5, "3", None, True, 0)),
    ],
)
def test_numbers_have_their_types(name: str, values: tuple[Any, ...], model: Model) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"^{name}: .* is not "):
            model.generate(["a"], **{name: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "settings: is None"),
        (3, "settings: is of type int"),
        (["data_dir=a\0b"], "data_dir: has a NUL character"),
        ([f"{HALF}={HALF}"], r"\\ud800: has half of a surrogate pair"),
        ({"data_dir": "a" * 200_000}, "data_dir: has 200,0.. bytes"),
        (["--help"], "settings: launch nothing"),
    ],
)
def test_overrides_that_start_nothing_are_told(settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        train(settings, quiet=True)
