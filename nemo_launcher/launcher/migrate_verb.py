# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher migrate`: a conf/ folder of NVIDIA's launcher as configuration files of this one, in a new folder."""

from __future__ import annotations

import argparse
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import decode, read_bytes
from nemo_launcher.files.foreign_yaml import MAX_YAML_BYTES
from nemo_launcher.files.new_folder import existing, new_folder
from nemo_launcher.jobs.verbs import Verb

if TYPE_CHECKING:
    from nemo_launcher.launcher.migration import Migrated

DIFF_NAME = "migration.diff"
"""The file with the differences between the old and the new files."""


def _add_migrate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="OLD_CONF_DIR", help="the conf/ folder of NVIDIA's launcher; it stays as it is")
    verb.add_argument("--output", metavar="DIR", help="the new folder (default: OLD_CONF_DIR-migrated)")
    verb.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    """Write the new files and print every change. Returns 0, also if something is left to be done by hand."""
    from nemo_launcher.launcher.migration import migrate_file

    old = Path(options.folder)
    target = Path(options.output) if options.output is not None else Path(f"{os.path.normpath(old)}-migrated")
    problems = [] if old.is_dir() else [Problem(str(old), "no such folder", "name the conf/ folder of your launcher")]
    problems += existing(target, "--output")
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(old)):
        problems.append(Problem(f"--output {target}", "is inside the old folder", "name a folder beside it"))
    files = sorted(old.rglob("*.yaml")) if not problems else []
    found: dict[str, tuple[str, Migrated]] = {}
    skipped: list[str] = []
    for path in files:
        name = path.relative_to(old).as_posix()
        try:
            text = decode(read_bytes(path, MAX_YAML_BYTES), str(path))
            migrated = migrate_file(name, text)
        except UserError as error:
            problems += [Problem(str(path), problem.what, problem.fix) for problem in error.problems]
            continue
        if migrated is None:
            skipped.append(name)
        else:
            found[name] = text, migrated
    if not found and not problems:
        what = "has no file of adapter_learning, ia3_learning or an evaluation of them"
        problems = [Problem(str(old), what, "name the conf/ folder of your launcher")]
    if problems:
        raise UserError(problems)
    with new_folder(target) as folder:
        for name, (_, migrated) in found.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(migrated.text, encoding="utf-8")
        differences = [line for name, (text, new) in found.items() for line in _difference(name, text, new.text)]
        (folder / DIFF_NAME).write_text("".join(differences), encoding="utf-8")
    for name, (_, migrated) in found.items():
        _report(name, migrated)
    groups = sorted({name.partition("/")[0] for name in skipped})
    print(f"\n{len(found)} files in {target}; the differences are in {target / DIFF_NAME}")
    if skipped:
        print(f"{len(skipped)} files have no counterpart here, of: {', '.join(groups)}")
    print(f"to use them: --config-path {target}")
    return 0


def _report(name: str, migrated: Migrated) -> None:
    print(f"{name}{'' if migrated.changes or migrated.problems else ': as it is'}")
    for key, how in migrated.changes:
        print(f"    {key}: {how}")
    for problem in migrated.problems:
        print("    to do: " + str(problem).replace("\n", "\n    "))


def _difference(name: str, old: str, new: str) -> list[str]:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"old/{name}", f"new/{name}"
    )
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


MIGRATE_VERBS: dict[str, Verb] = {
    "migrate": (_add_migrate, "write the files of a conf/ folder of NVIDIA's launcher as files of this one"),
}
