# SPDX-License-Identifier: Apache-2.0
"""The answers and scores so far of an evaluation, from which a stopped or killed job resumes at its next start."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.file_names import other_partials, partial_names
from nemo_launcher.evaluation.kept_answers import KeptAnswers, Kind, Number
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import ranks

_FIX = "remove it, or choose another pred_file_path"


class ReplicaAnswers(Generic[Number]):
    """One file of answers beside `output` per model replica, written by the replica's first rank.

    kind: what the answers are. Files of an earlier start with more replicas are read too. A context manager: after an
    interruption the files are kept and a message is printed.
    """

    def __init__(self, output: Path, kind: Kind[Number]) -> None:
        names = partial_names(output.name, parallel.data_size())
        self._output, self._kind = output, kind
        self._files = [KeptAnswers(output.with_name(name), _FIX, kind) for name in names]
        self._others: list[Path] = []  # files of further replicas; known only to rank 0
        writes = parallel.tensor_rank() == 0 and parallel.is_first_stage()
        self._own = self._files[parallel.data_rank()] if writes else None

    def __enter__(self) -> ReplicaAnswers[Number]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # everything is written
            for path in self._others:
                path.unlink(missing_ok=True)
        if self._own is None:
            return
        if kind is None:
            self._own.discard()
        self._own.close()
        if self._own.count:
            what = f"{self._own.count:,} {self._kind.name} are kept in {self._own.path}"
            kept = f"{what}; the next start resumes from them"
            print(kept, flush=True)

    def check(self, key: str) -> None:
        """Raise UserError for foreign files, as `begin` does. All ranks must call it."""
        ranks.decide_on_rank_zero(lambda: {"count": len(self._read(key))})

    def begin(self, key: str) -> dict[int, list[Number]]:
        """Return the existing answers by index of the question. All ranks must call it.

        key: hash of everything that determines the answers; answers with another key are dropped. Raises UserError for
        foreign files.
        """
        known = ranks.decide_on_rank_zero(lambda: {str(place): answer for place, answer in self._read(key).items()})
        if known and ranks.rank() == 0:
            print(f"resuming from {len(known):,} {self._kind.name} in {self._files[0].path}", flush=True)
        if self._own is not None:
            self._own.begin(key, replace_others=True)
        return {int(place): answer for place, answer in known.items()}

    def keep(self, place: int, answer: Sequence[Number]) -> None:
        """Add one answer of this replica. Raises WriteError."""
        if self._own is not None:
            self._own.take(place, answer)

    def _read(self, key: str) -> dict[int, list[Number]]:
        found = [file.read(key, replace_others=True)[0] for file in self._files]
        self._others = []
        for path in other_partials(self._output, len(self._files)):
            with contextlib.suppress(UserError):  # a foreign file, which is ignored
                found.append(KeptAnswers(path, _FIX, self._kind).read(key, replace_others=True)[0])
                self._others.append(path)
        return {place: answer for known in found for place, answer in known.items()}
