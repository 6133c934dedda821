# SPDX-License-Identifier: Apache-2.0
"""The answers of an evaluation so far: a job that was stopped or killed goes on from them at its next start."""

from __future__ import annotations

import contextlib
from pathlib import Path

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.file_names import other_partials, partial_names
from nemo_launcher.evaluation.kept_answers import KeptAnswers
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import ranks

_FIX = "remove it, or name another pred_file_path"


class ReplicaAnswers:
    """A file of answers beside `output` for each model replica, written by the replica's first rank.

    Those of an earlier start with more replicas are read too. Use as a context manager: where a job is cut off they all
    stay, and say so.
    """

    def __init__(self, output: Path) -> None:
        names = partial_names(output.name, parallel.data_size())
        self._output = output
        self._files = [KeptAnswers(output.with_name(name), _FIX) for name in names]
        self._others: list[Path] = []  # of replicas beyond these; rank 0 knows them
        writes = parallel.tensor_rank() == 0 and parallel.is_first_stage()
        self._own = self._files[parallel.data_rank()] if writes else None

    def __enter__(self) -> ReplicaAnswers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # all is written
            for path in self._others:
                path.unlink(missing_ok=True)
        if self._own is None:
            return
        if kind is None:
            self._own.discard()
        self._own.close()
        if self._own.count:
            kept = f"{self._own.count:,} answers are kept in {self._own.path}: the next start goes on from them"
            print(kept, flush=True)

    def check(self, key: str) -> None:
        """Raise UserError for files of somebody else's, as `begin` will; all ranks must call it."""
        ranks.decide_on_rank_zero(lambda: {"count": len(self._read(key))})

    def begin(self, key: str) -> dict[int, list[int]]:
        """Return the tokens of the answers that are there, by the place of their question; all ranks must call it.

        key: of all that decides the answers; those of another key are dropped. Raises UserError for files of
        somebody else's.
        """
        known = ranks.decide_on_rank_zero(lambda: {str(place): ids for place, ids in self._read(key).items()})
        if known and ranks.rank() == 0:
            print(f"going on from {len(known):,} answers in {self._files[0].path}", flush=True)
        if self._own is not None:
            self._own.begin(key, replace_others=True)
        return {int(place): ids for place, ids in known.items()}

    def keep(self, place: int, tokens: list[int]) -> None:
        """Add one answer of this replica. Raises WriteError."""
        if self._own is not None:
            self._own.take(place, tokens)

    def _read(self, key: str) -> dict[int, list[int]]:
        found = [file.read(key, replace_others=True)[0] for file in self._files]
        self._others = []
        for path in other_partials(self._output, len(self._files)):
            with contextlib.suppress(UserError):  # somebody else's, which is not in the way
                found.append(KeptAnswers(path, _FIX).read(key, replace_others=True)[0])
                self._others.append(path)
        return {place: ids for known in found for place, ids in known.items()}
