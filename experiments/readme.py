"""Puts the tables in results/*.md into the README, between their marks.

    python experiments/readme.py

A block begins with `<!-- results/name.md -->` and ends with `<!-- end -->`; what stands between is
replaced. tests/test_readme.py fails when the README and the files disagree.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(<!-- (results/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_results(text: str) -> str:
    """`text` with each block's content read anew from its file."""

    def fill(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        return f"{start}\n{(HERE / name).read_text().strip()}\n\n{end}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    README.write_text(with_results(README.read_text()))
