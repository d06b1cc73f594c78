"""Builds the project's site: static files with relative links, which need no server.

    python experiments/site.py --output=build/site

Its front is the page to draw on, with the package's network. Beside it are the report of a run on
MNIST, the repository's pages (README, tutorial, recipes, results, ...), and the reference, made by
pdoc. The workflow .github/workflows/pages.yml publishes it.
"""

import argparse
import contextlib
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

import _mnist
import pdoc
import pygments
from markdown_it import MarkdownIt
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from lenet_jax import cli, data, export, report
from lenet_jax.run import loop, trained
from lenet_jax.run.measure import measure_run, predict_logits
from lenet_jax.run.settings import Settings

HERE = Path(__file__).resolve().parent
ROOT, PARTS = HERE.parent, HERE / "_site"
NAV = {
    "Draw": "index.html",
    "About": "README.html",
    "Tutorial": "experiments/tutorial.html",
    "Recipes": "experiments/recipes.html",
    "Results": "experiments/README.html",
    "Report": "report/index.html",
    "Reference": "reference/lenet_jax.html",
}
SOURCES = ("*.md", "experiments/*.md", "experiments/results/*.md")
NAV_STYLE = (PARTS / "nav.css").read_text()
FORMATTER = HtmlFormatter(nowrap=True)
LIGHT, DARK = "default", "github-dark"  # of code; styles of pygments


def train(dataset: data.Dataset, folder: Path) -> trained.TrainedRun:
    """The run of which the report tells."""
    folder.mkdir(parents=True)
    settings = Settings(dataset=dataset.name, optimizer="adam", workdir=str(folder))
    loop.fit(loop.resolve(settings, dataset), dataset, folder, lambda line: None)
    return trained.load(folder)


def build(
    output: Path, network: trained.TrainedRun, run: trained.TrainedRun, dataset: data.Dataset
) -> None:
    """Writes the site into the folder `output`, which it makes; it replaces files of the same name.

    `network` is on the front; the report is of `run` and the test images of `dataset`.
    """
    output.mkdir(parents=True, exist_ok=True)
    prose = (PARTS / "style.css").read_text()
    (output / "style.css").write_text(f"{code_style()}\n{NAV_STYLE}\n{prose}")
    draw = export.web_page(network).decode()
    (output / "index.html").write_text(with_nav(draw, "index.html", NAV_STYLE))
    logits = predict_logits(run, dataset.test.images)
    result = measure_run(run, dataset, logits)
    drawn = report.report([run], dataset, logits, result, output / "report")
    drawn.write_text(with_nav(drawn.read_text(), "report/index.html", NAV_STYLE))
    for pattern in SOURCES:
        for page in ROOT.glob(pattern):
            write(output, page, page.read_text())
    files = sorted(page.name for page in HERE.glob("results/*"))
    listed = "".join(f"- [{name}]({name})\n" for name in files)
    write(output, HERE / "results" / "index.md", f"# Files of results\n\n{listed}")
    pdoc.render.configure(docformat="google", template_directory=PARTS)
    pdoc.render.env.globals["dark_code"] = HtmlFormatter(style=DARK).get_style_defs(".pdoc-code")
    pdoc.pdoc("lenet_jax", output_directory=output / "reference")


def write(output: Path, source: Path, text: str) -> None:
    """Writes a page of the repository, at the same place with .html, and the files it links to."""
    name = source.relative_to(ROOT).with_suffix(".html").as_posix()
    content, files = render(text, source)
    for file in files:
        copy = output / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    heading = re.search(r"^# (.*)", text, re.MULTILINE)
    title = heading[1] if heading else source.name
    content = content if heading else f"<h1>{title}</h1>\n{content}"
    page = Template((PARTS / "page.html").read_text())
    html = page.substitute(title=title, content=content, root=root(name))
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text(with_nav(html, name))


def render(text: str, source: Path) -> tuple[str, set[Path]]:
    """A page's HTML, and the files beside pages that it shows or links to."""
    markdown = MarkdownIt("commonmark", {"highlight": highlight}).enable("table")
    tokens, files = markdown.parse(text), set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor(inline.content))
    for token in itertools.chain(*(token.children or () for token in tokens)):
        for name in {"href", "src"} & token.attrs.keys():
            path, mark, fragment = token.attrs[name].partition("#")
            if not path or ":" in path:
                continue
            file = (source.parent / path).resolve()
            if file.is_dir():
                path = f"{path}/index.html"
            elif file.suffix == ".md":
                path = path.removesuffix(".md") + ".html"
            elif file.suffix == ".py" and file.is_relative_to(ROOT / "lenet_jax"):
                module = file.relative_to(ROOT).with_suffix(".html")
                path = os.path.relpath(ROOT / "reference" / module, source.parent)
            else:
                files.add(file)
            token.attrs[name] = f"{path}{mark}{fragment}"
    return markdown.renderer.render(tokens, markdown.options, {}), files


def anchor(heading: str) -> str:
    """As GitHub makes it.

    >>> anchor("What happens when… `SIGKILL`")
    'what-happens-when-sigkill'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def highlight(code: str, language: str, _: str) -> str:
    return pygments.highlight(code, get_lexer_by_name(language or "text"), FORMATTER)


def code_style() -> str:
    """Colours of code on pages, by day and by night."""
    light, dark = (HtmlFormatter(style=style).get_style_defs("pre code") for style in (LIGHT, DARK))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def root(name: str) -> str:
    """From a page to the site's folder."""
    return "../" * name.count("/")


def with_nav(html: str, name: str, style: str = "") -> str:
    """A page with the line of links, and with its style if the page does not link to it."""
    links = (
        f'<a href="{root(name)}{to}"{" aria-current=page" if to == name else ""}>{text}</a>'
        for text, to in NAV.items()
    )
    nav = f'<nav id="site" aria-label="Site">{" ".join(links)}</nav>'
    html = html.replace("</head>", f"<style>{style}</style></head>", 1) if style else html
    return html.replace("<body>", f"<body>\n{nav}", 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    output = parser.parse_args().output.absolute()
    cli.start_jax()
    # In a folder of its own, so that the report names no path of this machine.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        network = trained.load_network(trained.NetworkSettings(), lambda line: None)
        mnist = _mnist.load()
        build(output, network, train(mnist, Path("runs/mnist")), mnist)
    print(f"the site is {output / 'index.html'}")


if __name__ == "__main__":
    main()
