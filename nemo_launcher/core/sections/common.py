"""What the sections share: bounds on numbers, and the `run` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.core.schema import AtLeast, PathText

Count = Annotated[int, AtLeast(1)]
Size = Annotated[int, AtLeast(0)]
Amount = Annotated[float, AtLeast(0)]
Scalar = str | int | float | bool
Accelerator = Literal["gpu", "cuda", "cpu", "auto"]
Precision = Literal[16, 32, "16", "32", "bf16", "16-mixed", "bf16-mixed", "32-true"]


@dataclass
class Run:
    """What every stage's `run` section has."""

    name: str
    results_dir: PathText
    time_limit: str | None = None  # HH:MM:SS or D-HH:MM:SS
    dependency: str | None = None  # as sbatch takes it; afterok or afterany alone: on the stage before
