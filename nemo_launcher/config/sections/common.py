# SPDX-License-Identifier: Apache-2.0
"""Definitions shared by the sections: bounds on numbers, patterns of text, and the `run` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Bounds, Form
from nemo_launcher.config.fields import PathText

Count = Annotated[int, Bounds(minimum=1)]
Size = Annotated[int, Bounds(minimum=0)]
Amount = Annotated[float, Bounds(minimum=0)]
Positive = Annotated[float, Bounds(above=0, example=1.0)]
Share = Annotated[float, Bounds(minimum=0, maximum=1)]
FromMinusOne = Annotated[int, Bounds(minimum=-1)]
Scalar = str | int | float | bool
Accelerator = Literal["gpu", "cuda", "cpu", "auto"]
Kernels = Literal["auto", "liger", "torch"]
_UP_TO_59 = r"[0-5]?\d"
SlurmTime = Annotated[
    str,
    Form(
        rf"\d{{1,7}}(:{_UP_TO_59})?|\d{{1,5}}:{_UP_TO_59}:{_UP_TO_59}"
        rf"|\d{{1,4}}-([01]?\d|2[0-3])(:{_UP_TO_59}){{0,2}}",
        "a time limit [DAYS-]HOURS:MINUTES:SECONDS with minutes and seconds up to 59",
        "04:00:00",
    ),
]


@dataclass(frozen=True)
class Run:
    """The keys common to every stage's `run` section."""

    name: str
    """The job's name; its script, configuration and logs are named after it."""
    results_dir: PathText
    """The job folder."""
    time_limit: SlurmTime | None = None
    """Wall-clock limit in sbatch's format, [DAYS-]HOURS:MINUTES:SECONDS; null for the cluster's default."""
    dependency: str | None = None
    """Dependency in sbatch's format; `afterok` or `afterany` alone refers to the previous stage."""
