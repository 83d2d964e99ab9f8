"""Builds the site of the documents with Zensical. ``python -m docs.build [--out build/docs]``, into ``build/docs/site``

The pages are copied first: the index becomes the site's start, its lists become the navigation, and files of the
checkout that pages link to come along. The site asks no other host for anything.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
_OUTSIDE = re.compile(r"\]\((\.\./[\w./-]+)(?:#[^)]*)?\)")
_SECTION = re.compile(r"^\*\*(.+)\*\*$")
_ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)]+)\)")
EXTENSIONS = """
[project.markdown_extensions.admonition]
[project.markdown_extensions.attr_list]
[project.markdown_extensions.tables]
[project.markdown_extensions.md_in_html]
[project.markdown_extensions.sane_lists]
[project.markdown_extensions.toc]
permalink = true
[project.markdown_extensions.pymdownx.highlight]
[project.markdown_extensions.pymdownx.superfences]
[project.markdown_extensions.pymdownx.tabbed]
alternate_style = true
"""


def copy_pages(source: Path) -> None:
    """Copy pages, pictures and the API's document to `source`, with the files outside docs that pages link to."""
    for file in DOCS.rglob("*"):
        if file.suffix in (".md", ".png", ".svg", ".json"):
            target = source / file.relative_to(DOCS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (source / "README.md").rename(source / "index.md")
    for page in list(source.rglob("*.md")):
        folder = page.relative_to(source).parent

        def link(match: re.Match[str], folder: Path = folder) -> str:
            original = (DOCS / folder / match[1]).resolve()
            if original.is_relative_to(DOCS):
                return match[0]
            to_root = "../" * len(folder.parts)
            if original.is_dir():
                return f"]({to_root}index.md)"
            copied = Path("files") / original.relative_to(CHECKOUT).with_suffix(f"{original.suffix}.txt")
            (source / copied).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, source / copied)
            return f"]({to_root}{copied})"

        text = _OUTSIDE.sub(link, page.read_text(encoding="utf-8"))
        page.write_text(text.replace("](README.md", "](index.md"), encoding="utf-8")


def navigation() -> dict[str, list[str]]:
    """Return the sections of the index with their pages, and the decisions."""
    sections: dict[str, list[str]] = {}
    pages: list[str] = []
    for line in (DOCS / "README.md").read_text(encoding="utf-8").splitlines():
        if match := _SECTION.match(line):
            pages = sections.setdefault(match[1], [])
        elif (match := _ENTRY.match(line)) and match[1].endswith(".md"):
            pages.append(match[1])
    return {**sections, "Decisions": sorted(f"decisions/{path.name}" for path in (DOCS / "decisions").glob("*.md"))}


def main() -> int:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "docs")
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    copy_pages(out / "source")
    sections = [f"{{ {json.dumps(title)} = {json.dumps(pages)} }}" for title, pages in navigation().items()]
    project = [
        "[project]", 'site_name = "TRD"', 'docs_dir = "source"', 'site_dir = "site"',
        f'nav = ["index.md", {", ".join(sections)}]', "[project.theme]", "font = false",
        'features = ["content.tabs.link", "content.code.copy", "navigation.sections"]',
    ]  # fmt: skip
    (out / "zensical.toml").write_text("\n".join(project) + EXTENSIONS, encoding="utf-8")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--clean"], cwd=out, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
