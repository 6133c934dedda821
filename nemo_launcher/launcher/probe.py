# SPDX-License-Identifier: Apache-2.0
"""Facts about files and the cluster as seen at launch, each looked up only once for all runs of a sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.outline import Outline, read_outline
from nemo_launcher.clusters.base import Cluster, Site
from nemo_launcher.config.choice_loss import uses_choices
from nemo_launcher.config.sections import Learning
from nemo_launcher.data.records import count_records, size_of
from nemo_launcher.data.sampled_lengths import Lengths, sampled_lengths
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.launcher.stage import Preparation

COUNTED_BYTES = 1 << 30
"""Maximum size of a data file whose lines are counted."""


class LaunchProbe:
    """Cached facts about archives, prepared data and the cluster."""

    def __init__(self) -> None:
        self._outlines: dict[Path, Outline | UserError | None] = {}
        self._num_lines: dict[Path, int | None] = {}
        self._lengths: dict[object, Lengths | None] = {}
        self._common_records: dict[str, str | None] = {}
        self._prepared: dict[Preparation, bool] = {}
        self._sites: dict[type[Cluster], Site] = {}

    def outline(self, path: Path) -> Outline | None:
        """Return an archive's outline; None if reading it takes too long. Raises UserError as `read_outline` does."""
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
        """Return the outline of an archive; None if it is absent or unreadable."""
        try:
            return self.outline(path) if path.exists() else None
        except UserError:
            return None

    def num_lines(self, path: Path) -> int | None:
        """Return the number of records of a data file; None if it is absent, damaged or too large to count."""
        if self._num_lines.get(path) is None:  # it may have been prepared since
            try:
                counted = path.exists() and size_of(path) <= COUNTED_BYTES
                self._num_lines[path] = count_records(path) if counted else None
            except (OSError, UserError):  # reported by the check of the data file
                self._num_lines[path] = None
        return self._num_lines[path]

    def lengths(self, base: Path, section: Learning, limit: int, *, answer_apart: bool) -> Lengths | None:
        """Return the lengths of a training's samples, from a part of its data; None without data.

        base: the archive with the tokenizer; limit, answer_apart: as in `sampled_lengths`.
        """
        from nemo_launcher.data.token_counts import chat_of, token_counter  # imports a tokenizer's library

        model = section.model
        paths = tuple(Path(path) for path in model.data.train_ds)
        key = (base, paths, str(model.task_templates), str(model.data.fields), limit, uses_choices(model))
        if self._lengths.get(key) is None:  # the data may have been prepared since
            self._lengths[key] = None
            with contextlib.suppress(UserError, OSError), Archive(base) as archive:
                templates = [TaskTemplate.from_config(vars(template)) for template in model.task_templates]
                if any(path.exists() for path in paths):
                    count = token_counter(archive)
                    chat = chat_of(archive) if any(template.is_chat for template in templates) else None
                    self._lengths[key] = sampled_lengths(
                        paths,
                        templates,
                        count,
                        limit=limit,
                        answer_apart=answer_apart,
                        columns=model.data.fields,
                        with_choices=uses_choices(model),
                        chat=chat,
                    )
        return self._lengths[key]

    def common_records(self, key: str, find: Callable[[], str | None]) -> str | None:
        """Return what `find` says about records that sets of data have in common; key: names the sets."""
        if self._common_records.get(key) is None:  # the data may have been prepared since
            self._common_records[key] = find()
        return self._common_records[key]

    def is_prepared(self, preparation: Preparation) -> bool:
        """Return whether task data exists and was made from the present sources."""
        if preparation not in self._prepared:
            from nemo_launcher.data.preparation import builder_of

            builder = builder_of(preparation.dataset)
            self._prepared[preparation] = builder.is_prepared(preparation.source_dir, preparation.output_dir)
        return self._prepared[preparation]

    def site(self, kind: type[Cluster]) -> Site:
        """Return the cluster of this type that the machine belongs to."""
        if kind not in self._sites:
            self._sites[kind] = kind.site()
        return self._sites[kind]
