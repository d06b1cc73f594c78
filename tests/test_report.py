"""The command from outside: the page that it leaves behind."""

import base64
import dataclasses
import html.parser
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from test_evaluate import write_idx

import lenet_jax
from lenet_jax import report
from lenet_jax.run import folder, trained

NAMES = ["curves", "confusion", "calibration", "filters", "layers", "mistakes"]
EVIL = '<script>alert("1")</script> & "run"'


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def reported(tiny_run, tmp_path_factory) -> Path:
    """A run with a dangerous name, and another one, compared."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [shutil.copytree(tiny_run, folder / name) for name in (EVIL.replace("/", "-"), "other")]
    report.main(["report", *(f"--workdir={run}" for run in runs)])
    return runs[0]


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page((reported / "report" / "index.html").read_text())


def test_the_page_holds_its_pictures_and_they_lie_beside_it(reported, page):
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == len(NAMES)
    for name, source in zip(NAMES, sources, strict=True):
        kind, content = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == (reported / "report" / f"{name}.png").read_bytes()
    assert len(list((reported / "report").iterdir())) == len(NAMES) + 1


def test_the_page_reaches_for_nothing(page):
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    values = [str(value) for _, attrs in page.tags for value in attrs.values()]
    assert not [value for value in values if re.match(r"\s*(https?:)?//", value)]
    assert any("default-src 'none'" in value for value in values)


@pytest.mark.parametrize(("width", "columns"), [(320, 1), (390, 1), (1100, 2)])
def test_a_browser_shows_all_of_it_and_complains_of_nothing(width, columns, reported, window):
    window.open(reported / "report" / "index.html", width, 900)
    window.settle()
    told = {event["method"] for event in window.events}
    assert not {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"} & told
    widths = window.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == len(NAMES)
    assert min(widths) > 0
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    lefts = "[...document.querySelectorAll('figure')].map((one) => one.getBoundingClientRect().x)"
    assert len(set(window.evaluate(lefts))) == columns


@pytest.mark.parametrize(("mode", "is_dark"), [("light", False), ("dark", True)])
def test_it_is_as_light_or_dark_as_the_reader_likes(mode, is_dark, reported, window):
    scheme = {"name": "prefers-color-scheme", "value": mode}
    window.call("Emulation.setEmulatedMedia", features=[scheme])
    window.open(reported / "report" / "index.html")
    for what, dark in (("backgroundColor", is_dark), ("color", not is_dark)):
        colour = window.evaluate(f"getComputedStyle(document.body).{what}")
        assert (max(map(int, re.findall(r"\d+", colour))) < 128) == dark


def test_what_comes_from_files_is_text_and_not_html(page):
    assert "script" not in {tag for tag, _ in page.tags}
    assert EVIL.replace("/", "-") in page.text


def test_numbers_settings_and_runs_are_there(reported, page):
    run = trained.load(reported)
    last = run.metrics[-1]
    for words in (
        *(f"{last['test_accuracy']:.2%}", f"{last['test_loss']:.4f}", "learning_rate", "0.003"),
        *("digits", "360 test images", run.config["versions"]["jax"], "other"),
        f"{lenet_jax.__version__}+",
    ):
        assert words in page.text


def test_the_settings_that_differ_are_those_that_affect_results(tiny_run, tmp_path):
    runs = []
    for rate, name in ((0.1, "a"), (0.2, "b")):
        run = trained.load(tiny_run)
        settings = {**run.config["settings"], "learning_rate": rate, "workdir": name}
        runs.append(dataclasses.replace(run, config={**run.config, "settings": settings}))
    assert report.differing_settings(runs) == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]


def test_runs_of_the_same_name_are_called_by_their_paths(tiny_run, tmp_path):
    runs = [trained.load(shutil.copytree(tiny_run, tmp_path / name / "run")) for name in "ab"]
    assert report.run_names(runs) == [str(tmp_path / name / "run") for name in "ab"]
    assert report.run_names(runs[:1]) == ["run"]


def test_a_run_that_is_named_twice_is_compared_with_itself(tiny_run, tmp_path):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    report.main(["report", *[f"--workdir={path}"] * 2])
    tags = [tag for tag, _ in Page((path / "report" / "index.html").read_text()).tags]
    assert tags[: tags.index("figure")].count("tr") == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--workdir is missing"),
        (["--workdir=no/such/folder"], "--workdir=no/such/folder: there is no such folder"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_code_2(flags, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        report.main(["report", *flags])
    said = capsys.readouterr().err
    assert (exit_info.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {words}")


def test_a_run_that_was_copied_here_is_reported_with_data_dir(tiny_run, tmp_path, capsys):
    """Its own folder of data is not on this machine; the data named instead are others."""
    path = shutil.copytree(tiny_run, tmp_path / "run")
    config = folder.read_config(path)
    run = trained.load(path)
    config["data"]["name"], config["settings"]["data_dir"] = "kmnist", str(tmp_path / "gone")
    loaded = dataclasses.replace(run, config=config)
    write_idx(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", lambda path: loaded)
        with pytest.raises(SystemExit):
            report.main(["report", f"--workdir={path}"])
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path / 'gone'}, where the run had its data: ")
        assert err.endswith("name another folder with --data_dir\n")
        report.main(["report", f"--workdir={path}", f"--data_dir={tmp_path}"])
    note = "note: these images differ from the run's own, which came from "
    assert note in capsys.readouterr().out
    text = Page((path / "report" / "index.html").read_text()).text
    assert note in text
    assert f"3 test images from IDX files in {tmp_path}" in text


def test_the_page_goes_where_output_says_and_where_it_cannot_the_numbers_are_told(
    tiny_run, tmp_path, capsys, monkeypatch
):
    before = sorted(tiny_run.iterdir())
    folder = tmp_path / "made" / "here"
    report.main(["report", f"--workdir={tiny_run}", f"--output={folder}"])
    assert (folder / "index.html").exists()
    last, following = capsys.readouterr().out.splitlines()[-2:]
    assert last.endswith(f"; the report is {folder / 'index.html'}")
    assert following == f"next: lenet-jax export --workdir={tiny_run} --format=html"
    assert sorted(tiny_run.iterdir()) == before
    monkeypatch.setattr(report.page, "draw", lambda *args: {})
    monkeypatch.setattr(report.page, "render", lambda *args, **kwargs: "")
    run = trained.load(tiny_run)
    colour = run.config | {"data": run.config["data"] | {"channels": 3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "load", lambda path: dataclasses.replace(run, config=colour))
        report.main(["report", f"--workdir={tiny_run}", f"--output={folder}"])
    assert capsys.readouterr().out.endswith(" --format=onnx\n")  # html takes one channel
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_info:
        report.main(["report", f"--workdir={tiny_run}", f"--output={tmp_path / 'file'}"])
    assert exit_info.value.code == 1
    said = capsys.readouterr()
    assert said.out.startswith("accuracy ")
    assert said.err.startswith(f"error: {tmp_path / 'file'}: cannot be written to")
    assert "--output" in said.err


def test_a_run_without_metrics_and_without_matplotlib(tiny_run, tmp_path, capsys, monkeypatch):
    path = shutil.copytree(tiny_run, tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    monkeypatch.delitem(sys.modules, "lenet_jax.viz.figures", raising=False)
    monkeypatch.delattr("lenet_jax.viz.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):  # `cli.run` makes a line of it
        report.main(["report", f"--workdir={path}"])
    capsys.readouterr()
    assert not (path / "report").exists()
    monkeypatch.undo()
    report.main(["report", f"--workdir={path}"])
    result = capsys.readouterr().out
    assert f"the report is {path / 'report' / 'index.html'}\n" in result
    assert json.loads((path / "config.json").read_text())  # the run itself is as it was
