"""What configuration files may compute: ${multiply:a,b}, ${divide_ceil:a,b}, ${divide_floor:a,b}, ${launcher_scripts:}."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

REPOSITORY = Path(__file__).resolve().parents[2]


def register() -> None:
    """Make the resolvers known to OmegaConf; calling it again changes nothing."""
    for name, resolver in {
        "multiply": lambda a, b: a * b,
        "divide_ceil": lambda a, b: -(-a // b),
        "divide_floor": lambda a, b: a // b,
        "launcher_scripts": lambda: str(REPOSITORY / "launcher_scripts"),
    }.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
