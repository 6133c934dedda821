# SPDX-License-Identifier: Apache-2.0
"""A report in a real browser: nothing is refused by the page's policy, and its script runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nemo_launcher.reports.report import write_report
from nemo_launcher.reports.runs import find_runs
from tests.reports.folders import evaluation, line
from tests.reports.pages import Page

pytestmark = pytest.mark.integration

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_accepts_the_page(tmp_path: Path) -> None:
    lines = [line(1, 0, 1, "<script>document.title = 'changed'</script>"), line(2, 1, 0)]
    (run,) = find_runs([evaluation(tmp_path / "run", lines)])
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}/profile"]
    command += ["--no-sandbox"] if os.getuid() == 0 else []
    command += ["--enable-logging=stderr", "--dump-dom", write_report(run).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert not [said for said in done.stderr.splitlines() if "CONSOLE" in said]
    page = Page(done.stdout)
    assert "Filter by text:" in page.visible  # the page's own script has run
    assert "<title>Evaluation: run</title>" in done.stdout
