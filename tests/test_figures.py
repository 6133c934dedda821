# SPDX-License-Identifier: Apache-2.0
"""Figures in the prose of the guides are those of the code and of the measured tables."""

from __future__ import annotations

import re

import pytest

from docs.tools.sizes import MODELS
from nemo_launcher.adapters.settings import OPTIMIZER_BYTES
from nemo_launcher.data import batching, cache
from nemo_launcher.data.sampled_lengths import FIRST_RECORDS, READ_BYTES
from nemo_launcher.launcher.memory import GRADIENT_BYTES, LIBRARY_BYTES, PROCESS_BYTES
from nemo_launcher.training import calibration
from tests.documents import TEXTS

pytestmark = pytest.mark.unit
TRAINING, SIZES = (" ".join(TEXTS[f"docs/{name}.md"].split()) for name in ("training", "sizes"))
BENCHMARKS = TEXTS["benchmarks/README.md"]
GIGABYTES = {model.name: 2 * model.parameters / 1e9 for model in MODELS}


def row(name: str) -> list[float]:
    """Return the figures of the first row of the benchmarks whose first cell is `name`."""
    cells = BENCHMARKS.partition(f"\n| {name} | ")[2].partition("\n")[0].split("|")
    return [float(cell.replace(",", "")) for cell in cells if re.fullmatch(r" *[\d.,]+ *", cell)]


@pytest.mark.parametrize(
    "sentence",
    [
        f"The first {READ_BYTES >> 20} MiB of each data file are read, and {FIRST_RECORDS} records",
        f"training of at least {calibration._WORTH_TOKENS:,} tokens measures it",
        f"on a CPU {(PROCESS_BYTES + LIBRARY_BYTES) / 2**30:.2f} GiB for Python and its libraries",
        f"A cache that has not been used for {cache._KEPT_DAYS} days is removed",
    ],
)
def test_limits_in_the_guide_of_training_are_those_of_the_code(sentence: str) -> None:
    assert sentence in TRAINING
    assert batching._MIN_GAIN == 0.1
    assert "expected to save at least a tenth of the time" in TRAINING


def test_speed_of_flex_attention_is_the_measured_one() -> None:
    names = ("IA3, {}", "adapter, {}", "IA3, other lengths in each step, {}")
    pairs = [(row(name.format("sdpa without cuDNN"))[0], row(name.format("flex"))[0]) for name in names]
    ratios = [slow / fast for slow, fast in pairs]
    assert f"were {min(ratios):.1f} to {max(ratios):.1f} times as fast" in TRAINING


def test_sizes_are_those_of_the_estimate() -> None:
    assert f"optimizer add {OPTIMIZER_BYTES + GRADIENT_BYTES} bytes per trained parameter" in SIZES
    small, large = GIGABYTES["Llama 3.1 8B"], GIGABYTES["Llama 3.1 70B"]
    assert f"{small:.0f} GB for 8B parameters, {large:.0f} GB for 70B" in SIZES


def test_the_estimate_is_as_close_to_the_measured_peak_as_the_guide_says() -> None:
    table = BENCHMARKS.partition("| | ms a step | peak GiB | estimated GiB |\n")[2].partition("\n\n")[0]
    figures = [[float(cell) for cell in line.split("|")[-3:-1]] for line in table.splitlines()[1:]]
    assert f"measured peak for {len(figures)} configurations" in SIZES
    largest = max(abs(peak - estimate) for peak, estimate in figures)
    assert f"they differ by at most {largest:.1f} GiB" in SIZES


def test_recomputed_layers_take_as_much_longer_as_the_guide_says() -> None:
    tables = [text.partition("\n")[2] for text in BENCHMARKS.split("1.7B, 8 samples of 1,024 tokens, ")[1:]]
    ratios = []
    for method in ("IA3, sdpa", "LoRA, sdpa"):
        usual = row(f"1.7B, 8 samples of 1,024 tokens, {method}")[0]
        after = next(text for text in tables if "| the same, layers recomputed | " in text.partition("\n")[0])
        tables.remove(after)
        ratios.append(float(after.split("|")[2]) / usual)
    assert f"which took {min(ratios):.1f} to {max(ratios):.1f} times as long" in SIZES


def test_the_quickstart_is_as_fast_as_the_readme_says() -> None:
    (adapter,) = re.findall(r"^\| base \+ adapter \|.*\) \| ([\d.]+) \|", TEXTS["README.md"], flags=re.MULTILINE)
    assert f"with {float(adapter):.0f} samples per second" in SIZES
