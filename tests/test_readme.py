"""The pages are true: their figures are the files', their code runs, their flags exist."""

import dataclasses
import doctest
import re
from pathlib import Path

import pytest
import readme

from lenet_jax.run.settings import Settings

ROOT = readme.README.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in readme.PAGES}
ALL = "\n".join(PAGES.values())


def test_the_front_door_is_a_page_that_one_reads():
    assert PAGES["README.md"].count("\n") <= 150


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_results_is_its_file(page):
    assert readme.with_results(PAGES[page]) == PAGES[page]


def test_the_headline_is_the_range_over_the_processors_and_batch_sizes_of_the_table():
    rows = [row for row in readme.speed().splitlines() if row.startswith("| training, batch")]

    def span(suffix: str) -> str:
        numbers = [
            number
            for number, column in enumerate(readme.columns())
            if column.suffix == suffix and not column.note()  # by today's scripts
        ]
        cells = [row.split("|")[2 + number] for row in rows for number in numbers]
        medians = [float(re.search(r"\*\*(.*?)\*\*", cell)[1]) for cell in cells]
        assert len(medians) == len(numbers) * len(readme.BATCHES) >= 4
        return f"{min(medians):.1f} to {max(medians):.1f} times"

    assert readme.headline().startswith(f"**{span('')} as fast")
    assert f"({span('_avx2')} held to AVX2)" in readme.headline()


def test_the_cases_of_parity_are_counted_as_in_their_table():
    table = readme.HERE.joinpath("results", "parity.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (\d+) \|", table, re.MULTILINE)
    assert rows

    def count(words: str) -> int:
        return sum(int(n) for name, n in rows if words in name)

    steps, same = count("steps"), count("steps, same gradients")
    counts = [count("") - steps, same, steps - same]
    shown = re.findall(r"^\| [^|]+ \| (\d+) \|", readme.parity(), re.MULTILINE)
    assert [int(n) for n in shown] == counts


@pytest.mark.parametrize("page", PAGES)
def test_each_python_block_runs_and_prints_what_it_says(page):
    namespace: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, f"{number}", None, 0)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                test, clear_globs=False
            )
            namespace.update(test.globs)
            assert result.failed == 0
        else:
            exec(block, namespace)
    assert namespace or page != "README.md"


def test_flags_that_are_shown_exist():
    known = {field.name for field in dataclasses.fields(Settings)} | {"help", "flagfile"}
    shown = set(re.findall(r"(?:lenet_jax\.|lenet-jax )train[^\n]*", ALL))
    flags = {flag for line in shown for flag in re.findall(r"--(?:no)?(\w+)", line)}
    assert flags
    assert flags <= known


LINK = re.compile(r"\]\((?!http)([^)#]+)[^)]*\)")


@pytest.mark.parametrize(
    ("page", "link"), sorted({(page, link) for page in PAGES for link in LINK.findall(PAGES[page])})
)
def test_each_relative_link_leads_somewhere(page, link):
    assert Path(ROOT, page).parent.joinpath(link).exists()


@pytest.mark.parametrize(
    "cited", sorted(set(re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", ALL))), ids="::".join
)
def test_each_test_that_is_cited_exists(cited):
    file, name = cited
    source = (ROOT / "tests" / file).read_text()
    assert not name or f"\ndef {name}(" in source


def test_the_drawn_cases_are_as_many_as_they_are_said_to_be():
    def drawn(*files: str) -> list[int]:
        text = "".join((ROOT / "tests" / f"{file}.py").read_text() for file in files)
        return [int(count) for count in re.findall(r"max_examples=(\d+)", text)]

    count = lambda file: sum(drawn(file))
    assert (
        f"{count('data/test_idx'):,} IDX files, {count('test_cli')} command lines, "
        f"{count('run/test_checkpoint')} checkpoints, {count('run/test_folder')} "
        f"`config.json`, {count('run/test_log')} `metrics.jsonl`"
    ) in ALL
