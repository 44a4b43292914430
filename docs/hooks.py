"""What mkdocs does besides: pages from outside docs/, and links to files that are not pages."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file of the repository -> page


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages from outside docs/."""
    for name, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Lead links, which are written for the repository, to pages; a link to another file becomes plain text."""
    source = next((name for name, uri in OUTSIDE.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = OUTSIDE.get(path, path.removeprefix("docs/"))
        return f"[{text}]({uri}{anchor})" if files.get_file_from_path(uri) else text

    return re.sub(r"\[([^]]*)]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", led, markdown)
