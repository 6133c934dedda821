# SPDX-License-Identifier: Apache-2.0
"""MkDocs hooks: documents outside docs/ become pages of the site, and links between all of them work in both places.

On a code host, README.md links to `docs/training.md`, and docs/clusters.md to `../SECURITY.md`. In the site, all pages
are in one folder.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Path in the repository -> page of the site."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
"""The path of a relative link."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the documents outside docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link at the page of the site. A link to a file that is no page stays, and the strict build fails."""
    sources = {uri: source for source, uri in PAGES.items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def page_of(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1]))
        uri = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return match[1] if uri is None else posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(page_of, markdown)
