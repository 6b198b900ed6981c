"""`make docs`: the pages as a site in build/site. Neither building nor reading it needs a network, or torch."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
DOCS, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
# Pages that lie beside docs/, and what they are called within it.
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# The theme would fetch this for the search of pages that are opened from the disk; it lies in docs/assets.
FETCHED, OWN = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js"
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


def gather() -> None:
    """Copies docs/ to build/docs, and beside its pages those of `BESIDE` and the notebooks as pages."""
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.copytree(ROOT / "docs", DOCS, ignore=shutil.ignore_patterns("*.py", "*.ipynb", "__pycache__"))
    for name, page in BESIDE.items():
        (DOCS / page).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    for notebook in (ROOT / "docs").glob("**/*.ipynb"):
        text, _ = MarkdownExporter().from_notebook_node(nbformat.read(notebook, as_version=4))
        # Tables get the theme's looks, not those that pandas gives them.
        text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.DOTALL)
        text = text.replace('<table border="1" class="dataframe">', "<table>").replace(
            ' style="text-align: right;"', ""
        )
        (DOCS / notebook.relative_to(ROOT / "docs")).with_suffix(".md").write_text(text, encoding="utf-8")
    for page in DOCS.glob("**/*.md"):
        page.write_text(_links_within(page.read_text(encoding="utf-8")), encoding="utf-8")


def _links_within(text: str) -> str:
    """A page's links as they are within the site."""
    text = re.sub(r"\]\((?:\.\./)*docs/", "](", text).replace(".ipynb)", ".md)")
    for name, page in BESIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}", f"]({page}", text)
    return text


def take_own_script() -> None:
    """Puts the script of docs/assets in the place of the one that the theme would fetch."""
    for path in SITE.glob("**/*.html"):
        up = "../" * (len(path.relative_to(SITE).parts) - 1)
        path.write_text(path.read_text(encoding="utf-8").replace(FETCHED, up + OWN), encoding="utf-8")


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.ids.add(value or "")
            elif (tag, name) in LOADED and dict(attrs).get("rel") not in ("canonical", "prev", "next"):
                self.loaded.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")


def mistakes() -> Iterator[str]:
    """Links of the built pages that lead nowhere, and what would be fetched from another machine."""
    pages = {path: _Page(path) for path in sorted(SITE.glob("**/*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc:
                yield f"{path.relative_to(SITE)}: loads {link}"
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.relative_to(SITE)}: {link} is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.relative_to(SITE)}: {link} leads to no place of that page"
    for style in SITE.glob("**/*.css"):
        for address in re.findall(
            r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", style.read_text(encoding="utf-8")
        ):
            yield f"{style.relative_to(SITE)}: loads {address}"


def main() -> int:
    """Builds the site; returns 1, and says what, where a page is wrong."""
    gather()
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False)
    if built.returncode:
        return built.returncode
    take_own_script()
    found = [*mistakes()]
    for mistake in found:
        print(mistake, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
