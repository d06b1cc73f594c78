"""Each program of experiments/recipes.md runs and prints what stands below it."""

import contextlib
import io
import re
import tempfile

import numpy as np
import pytest
from notebook import HERE, SNIPPET

pytestmark = pytest.mark.slow

PAGE = HERE / "recipes.md"
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
# Rounding differs between machines, and training makes more of it: the words must be equal, and the
# numbers up to this many per cent or, where there is no %, tenths. One of the 36 eights is 2.8 %.
TOLERANCE = {"Label weights": 14}
NUMBER = re.compile(r"\d+\.\d+(?=%)|\d+(?=%)|\d+\.\d+")


def test_ten_short_programs_each_with_its_output():
    assert len(SECTIONS) == 10
    for title, text in SECTIONS:
        programs = SNIPPET.findall(text)
        assert len(programs) == text.count("```python") == 1, title
        code, shown = programs[0]
        assert shown, title
        assert 8 <= len([line for line in code.splitlines() if line]) <= 20, title


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_it_prints_what_is_shown(title, text, tmp_path, monkeypatch):
    code, shown = SNIPPET.search(text).groups()
    if "torch" in code:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of the files that it writes
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, title, "exec"), {"__name__": "__main__"})
    printed = output.getvalue()
    assert NUMBER.sub("", printed) == NUMBER.sub("", shown)
    ours, theirs = (np.array(NUMBER.findall(one), float) for one in (printed, shown))
    unit = np.where(["%" in one for one in re.findall(NUMBER.pattern + "%?", shown)], 1, 0.1)
    assert (abs(ours - theirs) <= TOLERANCE.get(title, 4) * unit).all(), printed


LINKS = re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?\)", PAGE.read_text())


@pytest.mark.parametrize(("page", "heading"), LINKS)
def test_each_link_leads_to_a_heading(page, heading):
    headings = re.findall(r"^#+ (.*)$", (HERE / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    assert not heading or heading in anchors
