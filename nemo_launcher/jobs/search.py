# SPDX-License-Identifier: Apache-2.0
"""Find the records that a word on the command line names, and those of one chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from nemo_launcher.clusters import CLUSTERS
from nemo_launcher.clusters.record import SUFFIX, JobRecord, read, usable
from nemo_launcher.errors import Problem, UserError, did_you_mean

NO_JOBS = "there are no jobs; set the folder to search with --results-dir"


def choose(word: str, records: Iterable[JobRecord]) -> list[JobRecord]:
    """Return the records that `word` names: a folder, a job id, a job's name or a stage.

    Raises UserError when there is none.
    """
    records = list(records)
    folder = Path(word).absolute()
    if folder.is_dir():
        here = [record for path in sorted(folder.glob(f"*{SUFFIX}")) if (record := read(path)) is not None]
        if here:
            return here
    # an id names that job only, not the others started from its folder
    named = [single(record, word) for record in records if word in (record.job_id, *record.earlier)]
    found = named or [r for r in records if r.name == word] or [r for r in records if r.stage == word]
    if found:
        return found
    if folder.is_dir():
        raise UserError(Problem(word, "no job was started in this folder", "name the job's own folder"))
    known = {name for r in usable(records) for name in (r.job_id, r.name, r.stage) if name}
    raise UserError(Problem(word, "no such job or folder", did_you_mean(word, known) if known else NO_JOBS))


def choose_one(word: str, records: Iterable[JobRecord]) -> JobRecord:
    """Return the one record that `word` names. Raises UserError when there is none or more than one."""
    found = choose(word, records)
    if len(found) > 1:
        shown = ", ".join(f"{record.job_id or record.name} ({record.folder})" for record in found)
        raise UserError(Problem(word, f"names {len(found)} jobs", f"name one by its id or folder: {shown}"))
    return found[0]


def single(record: JobRecord, job_id: str) -> JobRecord:
    """Return the record as if `job_id` were the only job ever started from its folder."""
    if job_id == record.job_id:
        return dataclasses.replace(record, earlier=[])
    logs = CLUSTERS[record.cluster_type].logs(record, job_id)
    return dataclasses.replace(record, job_id=job_id, logs=logs, earlier=[])


def later_stages(record: JobRecord) -> list[JobRecord]:
    """Return the records of the stages after this one, in order. Raises UserError when one is missing or damaged."""
    chain = [record]
    while (path := chain[-1].after) is not None:
        following = read(path)
        if following is None or following.damage:
            what = f"the stage after {chain[-1].stage} has no usable record: {path}"
            raise UserError(Problem(str(chain[-1].folder), what, "launch the chain again with its own command"))
        if following.before != chain[-1].record_file or following.record_file in [r.record_file for r in chain]:
            break  # launched in another chain since
        chain.append(following)
    return chain[1:]
