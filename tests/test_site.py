"""The site, built as the workflow builds it but with a tiny network."""

import html.parser
import re
import runpy
from pathlib import Path

import pytest

from lenet_jax import data
from lenet_jax.run import trained

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# By its path, because `import site` is the standard library's.
SITE = runpy.run_path(str(ROOT / "experiments" / "site.py"))


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and the places in it that have a name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.names: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        self.loads |= {found[name] for name in ("src", "href") if name in found and tag != "a"}


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("site") / "made"
    run = trained.load(tiny_run)
    SITE["build"](output, run, run, data.load("digits"))
    return output


@pytest.fixture(scope="module")
def pages(folder) -> dict[Path, Page]:
    return {file: Page(file) for file in folder.rglob("*.html")}


def test_what_is_linked_to_is_there(folder, pages):
    linked = 0
    for file, page in pages.items():
        for link in page.links | page.loads:
            path, _, name = link.partition("#")
            if re.match(r"(https?|data):", link):
                continue
            target = (file.parent / path).resolve() if path else file
            assert target.is_file(), f"{link} in {file}"
            assert target.is_relative_to(folder), f"{link} in {file}"
            if name and target in pages and "reference" not in target.parts:
                assert name in pages[target].names, f"{link} in {file}"
            linked += 1
    assert linked > 500


def test_nothing_is_loaded_from_elsewhere(folder, pages):
    loaded = {each for page in pages.values() for each in page.loads}
    assert not [each for each in loaded if re.match(r"(https?:)?//", each)]
    style = (folder / "style.css").read_text()
    assert not re.search(r"url\(|@import", style)


def test_every_page_leads_to_all_parts(folder, pages):
    for file, page in pages.items():
        depth = len(file.relative_to(folder).parts) - 1
        wanted = ["index.html"] if "reference" in file.parts else SITE["NAV"].values()
        if file != folder / "reference" / "index.html":  # which leads to the package's page
            assert {"../" * depth + to for to in wanted} <= page.links, file


@pytest.mark.parametrize("name", [to for to in SITE["NAV"].values() if "reference" not in to])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_a_phone_and_is_as_light_or_dark_as_the_reader_likes(name, mode, folder, window):
    scheme = {"name": "prefers-color-scheme", "value": mode}
    window.call("Emulation.setEmulatedMedia", features=[scheme])
    window.open(folder / name, 390, 844)
    assert not [
        e for e in window.events if e["method"] in {"Runtime.exceptionThrown", "Log.entryAdded"}
    ]
    assert window.evaluate("document.documentElement.scrollWidth") <= 390
    colour = window.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", colour))) < 128) == (mode == "dark")
