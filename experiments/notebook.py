"""Makes tutorial.ipynb from tutorial.md: a cell per snippet, with the output that the page shows.

    python experiments/notebook.py

tests/test_tutorial.py runs the notebook and fails if the two differ.
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

HERE = Path(__file__).parent
PAGE, NOTEBOOK = HERE / "tutorial.md", HERE / "tutorial.ipynb"
TABLE = re.compile(r"<table>.*?</table>\n", re.DOTALL)
# Code, and its output if the page shows it.
SNIPPET = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)

# Never by its name: an index may have a stranger's package of that name.
INSTALL = """\
try:
    import lenet_jax
except ImportError:  # installs the checkout in whose folder experiments/ this notebook lies
    %pip install --quiet .. torch"""


def make(page: str) -> nbformat.NotebookNode:
    """The notebook of a page whose tables have PyTorch above JAX."""
    cells = [new_code_cell(INSTALL)]
    texts, tables = TABLE.split(page), TABLE.findall(page)
    for text, table in zip(texts, [*tables, ""], strict=True):
        if text.strip():
            cells.append(new_markdown_cell(text.strip()))
        for language, snippet in zip(("PyTorch", "JAX"), SNIPPET.finditer(table), strict=False):
            code, printed = snippet.groups(default="")
            outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
            source = f"# {language}\n{code.rstrip()}"
            cells.append(new_code_cell(source, outputs=outputs))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # nbformat's own ids are random
    # The introduction first: the cell that installs comes before the first snippet.
    cells[0], cells[1] = cells[1], cells[0]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    nbformat.write(make(PAGE.read_text()), NOTEBOOK)
