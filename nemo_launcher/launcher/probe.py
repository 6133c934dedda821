# SPDX-License-Identifier: Apache-2.0
"""What the machine that launches can see. Each thing is looked at once, however many runs of a sweep ask for it."""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.checkpoint.outline import Outline, read_outline
from nemo_launcher.clusters.base import Cluster, Site
from nemo_launcher.config.training_length import count_records
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.launcher.stage import Preparation

COUNTED_BYTES = 1 << 30
"""The lines of a longer data file are not counted."""


class LaunchProbe:
    """Archives, prepared data and the cluster, as seen at launch."""

    def __init__(self) -> None:
        self._outlines: dict[Path, Outline | UserError | None] = {}
        self._num_lines: dict[Path, int | None] = {}
        self._prepared: dict[Preparation, bool] = {}
        self._sites: dict[type[Cluster], Site] = {}

    def outline(self, path: Path) -> Outline | None:
        """Return what an archive says about itself; None when that takes too long. Raises UserError, see there."""
        if path not in self._outlines:
            try:
                self._outlines[path] = read_outline(path)
            except UserError as error:
                self._outlines[path] = error
            except OSError as error:
                self._outlines[path] = UserError(Problem(str(path), f"cannot be read: {error.strerror or error}"))
        found = self._outlines[path]
        if isinstance(found, UserError):
            raise found
        return found

    def known_outline(self, path: Path) -> Outline | None:
        """Return the outline of an archive; None when it is not there or cannot be read."""
        try:
            return self.outline(path) if path.exists() else None
        except UserError:
            return None

    def num_lines(self, path: Path) -> int | None:
        """Return how many lines of a data file are not empty; None when it is not there or too long to be counted."""
        if path not in self._num_lines:
            try:
                counted = path.is_file() and path.stat().st_size <= COUNTED_BYTES
                self._num_lines[path] = count_records(path) if counted else None
            except OSError:  # told by the check of the data file
                self._num_lines[path] = None
        return self._num_lines[path]

    def is_prepared(self, preparation: Preparation) -> bool:
        """Whether task data is there, made from the sources that are there."""
        if preparation not in self._prepared:
            from nemo_launcher.data.preparation import builder_of

            builder = builder_of(preparation.dataset)
            self._prepared[preparation] = builder.is_prepared(preparation.source_dir, preparation.output_dir)
        return self._prepared[preparation]

    def site(self, kind: type[Cluster]) -> Site:
        """The cluster of this kind that the machine belongs to."""
        if kind not in self._sites:
            self._sites[kind] = kind.site()
        return self._sites[kind]
