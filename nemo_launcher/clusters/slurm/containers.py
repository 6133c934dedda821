# SPDX-License-Identifier: Apache-2.0
"""Containers of Slurm jobs: their mounts, the image file, and the paths of a job that no mount covers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.clusters.base import Settings
from nemo_launcher.clusters.job import Job
from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem
from nemo_launcher.files.foreign import kind_problem

_KEY = "container_mounts"
_SQUASHFS = b"hsqs"
"""The first bytes of an image that enroot writes."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the node in the container."""

    source: Path
    """Its path on the node."""
    target: Path
    """Its path in the container."""


def mounts_of(settings: Settings, jobs: Sequence[Job]) -> list[str]:
    """Return the mounts without duplicates: the run's folders at their own paths, then the user's mounts."""
    own = [
        settings.launcher_scripts.parent,
        settings.launcher_scripts,
        settings.data_dir,
        settings.base_results_dir,
    ]
    own += [job.folder for job in jobs if not job.folder.is_relative_to(settings.base_results_dir)]
    users = [mount if ":" in mount else f"{mount}:{mount}" for mount in settings.container_mounts]
    return list(dict.fromkeys([*(f"{path}:{path}" for path in own), *users]))


def container_problems(settings: Settings, jobs: Sequence[Job]) -> list[Problem]:
    """Return what is wrong with an image and mounts, and the paths of the jobs that the container would not see."""
    texts = mounts_of(settings, jobs)
    what, fix = "has a comma, which separates mounts", "choose a path without one"
    problems = [Problem(_KEY, f"{text!r} {what}", fix) for text in texts if "," in text]
    problems += [*_source_problems(settings), *_image_problems(settings)]
    mounts = [Mount(*map(Path, text.split(":")[:2])) for text in texts]
    hidden = {(job.stage, verb, path): unseen for job in jobs for verb, path, unseen in _hidden(job, mounts)}
    folders = dict.fromkeys(_folder(verb, unseen) for (_, verb, _), unseen in hidden.items())
    fix = f"add it: {override(_KEY, [*settings.container_mounts, *map(str, folders)])}"
    told: dict[tuple[str, str, Path], Problem] = {}  # one problem for each folder: a job writes many files into one
    for (stage, verb, path), unseen in hidden.items():
        link = "" if unseen == path else f" through a link to {unseen}"
        problem = Problem(_KEY, f"{stage} {verb} {path}{link}, which is not mounted", fix)
        told.setdefault((stage, verb, path.parent if unseen == path else unseen.parent), problem)
    return [*problems, *told.values()]


def _source_problems(settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each mount that does not exist, without which no container starts.

    A dry run may be made for another machine, which has other folders.
    """
    if settings.debug or settings.preflight != "error":
        return
    for text in settings.container_mounts:
        source = Path(text.split(":")[0])
        if source.is_absolute() and not source.exists():
            fix = "correct the path, or create the folder; preflight=warn if only the nodes have it"
            yield Problem(_KEY, f"{source} does not exist, so no container would start", fix)


def _image_problems(settings: Settings) -> Iterator[Problem]:
    """Yield a problem if there is no image: apptainer takes a file or an address, pyxis a file or a registry's name."""
    image = Path(settings.container or "")
    if settings.preflight != "error":
        return
    if settings.container_runtime != "pyxis":
        if "://" not in str(settings.container) and not image.exists():
            fix = f"name a .sif file, or an address: container=docker://{str(image).lstrip('/')}"
            yield Problem("container", f"{image} is no file that apptainer could run", fix)
    elif image.suffix == ".sif":
        yield Problem("container", f"{image} is an image of apptainer", "container_runtime=apptainer")
    elif image.suffix == ".sqsh" and len(image.parts) == 1:
        what = f"pyxis takes {image} for an image of a registry"
        yield Problem("container", what, f"name it with its folder: container={image.absolute()}")
    elif str(settings.container).startswith(("/", "./")):
        yield from _file_problems(image)


def _file_problems(image: Path) -> Iterator[Problem]:
    """Yield what prevents pyxis from starting an image file."""
    fix = "enroot import -o image.sqsh docker://NAME writes one; preflight=warn if only the nodes see it"
    unusable = kind_problem(image)
    if unusable is not None:
        yield Problem("container", f"{image}: {unusable.what}", fix)
        return
    try:
        with image.open("rb") as file:
            begins = file.read(len(_SQUASHFS))
    except OSError as error:
        yield Problem("container", f"{image} cannot be read: {error.strerror}", fix)
        return
    if begins != _SQUASHFS:
        yield Problem("container", f"{image} is not a squashfs image", fix)


def _hidden(job: Job, mounts: Sequence[Mount]) -> Iterator[tuple[str, Path, Path]]:
    """Yield ("reads" or "writes", path, what the container does not see of it: the path itself or a link's target)."""
    for verb, paths in (("reads", job.inputs), ("writes", [job.folder, *job.writes])):
        for path in dict.fromkeys(paths):
            unseen = next(filter(None, (_unseen(each, mounts) for each in (path, *_links_in(path)))), None)
            if unseen is not None:
                yield verb, path, unseen


def _unseen(path: Path, mounts: Sequence[Mount]) -> Path | None:
    """Return None if a container with these mounts sees a path, else the path, or where it leads."""
    covering = [mount for mount in mounts if path.is_relative_to(mount.target)]
    if not covering:
        return path
    mount = max(covering, key=lambda covered: len(covered.target.parts))
    real = Path(os.path.realpath(mount.source / path.relative_to(mount.target)))
    same = [Path(os.path.realpath(mount.source)), *(other.target for other in mounts if other.source == other.target)]
    return None if any(real.is_relative_to(folder) for folder in same) else real


def _links_in(path: Path) -> list[Path]:
    """Return the links in a folder: those of a model from the hub's cache lead to files beside the folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_symlink())


def _folder(verb: str, path: Path) -> Path:
    """Return the folder to mount for a path; of one that is written, the last folder that exists."""
    if verb == "reads":
        return path.parent
    existing = next(folder for folder in path.parents if folder.is_dir())
    return existing if len(existing.parts) > 1 else path.parent
