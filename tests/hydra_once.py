# SPDX-License-Identifier: Apache-2.0
"""Fixtures that let Hydra read each file and find each choice once, for launchers in this process."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import omegaconf
import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

CONF = str(Path(__file__).resolve().parents[1] / "conf")


@pytest.fixture(scope="session", autouse=True)
def configuration_files_parsed_once() -> Iterator[None]:
    """Let Hydra parse only new or changed files: parsing conf/ and its own takes over a third of a launch."""
    Plugins.instance()  # loads its sources' modules anew: the classes that it uses are those of its registry
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("file", "pkg"):
            source = SourcesRegistry.instance().types[scheme]
            patch.setattr(source, "load_config", _remembering(source.load_config))
        yield


def _remembering(original: Callable[[ConfigSource, str], ConfigResult]) -> Callable[[ConfigSource, str], ConfigResult]:
    parsed: dict[tuple[object, ...], bytes] = {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        changed = path.stat().st_mtime_ns if path.is_file() else None
        if changed is None and self.scheme() == "file":
            return original(self, config_path)
        key = (self.path, config_path, changed)
        if key not in parsed:
            parsed[key] = pickle.dumps(original(self, config_path))
        found: ConfigResult = pickle.loads(parsed[key])  # a copy, in less time than copy.deepcopy takes
        return found

    return load_config


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Find and merge each choice of conf/'s files once; skip Hydra's first composition, which only reads hydra.mode.

    tests/test_startup.py and the integration tests start separate launchers, where Hydra is unchanged.
    """
    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    choose = config_loader_impl.create_defaults_list
    merged: dict[str, bytes] = {}
    chosen: dict[str, bytes] = {}

    def is_conf(repo: IConfigRepository) -> bool:
        return [s.path for s in repo.get_sources() if s.scheme() == "file"] == [CONF]

    def remembered_choice(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **options: bool
    ) -> DefaultsList:
        if not is_conf(repo):
            return choose(repo, config_name, overrides_list, **options)
        choices = [override for override in overrides_list if repo.group_exists(override.key_or_group)]
        key = repr((config_name, [override.input_line for override in choices], options))
        if key not in chosen:
            made = choose(repo, config_name, choices, **options)
            made.config_overrides = made.overrides.config_overrides = []
            chosen[key] = pickle.dumps(made)
        found: DefaultsList = pickle.loads(chosen[key])
        found.config_overrides = Overrides(repo, overrides_list).config_overrides
        return found

    def remembered(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if not is_conf(repo):
            return merge(self, defaults, repo)
        key = repr(defaults)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, repo))
        found: DictConfig = pickle.loads(merged[key])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(config_loader_impl, "create_defaults_list", remembered_choice)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def interpolations_parsed_once() -> Iterator[None]:
    """The tree of an interpolation depends on its text alone, and nobody changes it."""
    parse = functools.cache(omegaconf.grammar_parser.parse)
    with pytest.MonkeyPatch.context() as patch:
        for module in (omegaconf.base, omegaconf._utils):
            patch.setattr(module, "parse", parse)
        yield
