# SPDX-License-Identifier: Apache-2.0
"""The wheel holds conf/ and launcher_scripts/ inside the package; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

BESIDE = {"nemo_launcher.conf": "conf", "nemo_launcher.launcher_scripts": "launcher_scripts"}

setup(
    packages=[*find_packages(include=["nemo_launcher*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "nemo_launcher": ["py.typed"],
        "nemo_launcher.conf": ["*.yaml", "**/*.yaml"],
        "nemo_launcher.launcher_scripts": ["data/quickstart/*"],
    },
)
