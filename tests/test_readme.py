"""The front door is true: its figures are the files', its code runs, its flags exist."""

import dataclasses
import doctest
import re
from pathlib import Path

import pytest
import readme

from lenet_jax.run.settings import Settings

TEXT = readme.README.read_text()
ROOT = readme.README.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_results_block_is_its_file():
    assert readme.with_results(TEXT) == TEXT


def test_each_python_block_runs_and_prints_what_it_says():
    assert blocks("python")
    namespace: dict = {}
    for number, block in enumerate(blocks("python")):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, namespace, f"{number}", None, 0)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                test, clear_globs=False
            )
            namespace.update(test.globs)
            assert result.failed == 0
        else:
            exec(block, namespace)


def test_flags_that_are_shown_exist():
    known = {field.name for field in dataclasses.fields(Settings)} | {"help", "flagfile"}
    shown = set(re.findall(r"lenet_jax\.train[^\n]*", TEXT))
    flags = {flag for line in shown for flag in re.findall(r"--(?:no)?(\w+)", line)}
    assert flags
    assert flags <= known


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_each_relative_link_leads_somewhere(link):
    assert Path(ROOT, link).exists()


@pytest.mark.parametrize(
    "cited", sorted(set(re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", TEXT))), ids="::".join
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
        f"{count('run/test_checkpoint')} checkpoint metadata, {count('run/test_folder')} "
        f"`config.json`, {count('run/test_log')} `metrics.jsonl`"
    ) in TEXT
