"""Commands in a notebook, in a thread and without docstrings."""

import os
import subprocess
import sys
import threading

import nbclient
import nbformat
import pytest

from lenet_jax import evaluate, train

FLAGS = ["--dataset=digits", "--epochs=1", "--batch_size=256"]
CELLS = {
    "jax is used first": "import jax; print(jax.numpy.ones(3).sum())",
    "by %run": "%run -m lenet_jax.train -- {flags} --workdir={folder}/a",
    "by main": "from lenet_jax import train; train.main(['train', *'{flags}'.split(), "
    "'--workdir={folder}/b'])",
    "another command": "from lenet_jax import evaluate; "
    "evaluate.main(['evaluate', '--workdir={folder}/b'])",
    "in a thread": "import threading; t = threading.Thread(target=train.main, args=(['train', "
    "*'{flags}'.split(), '--workdir={folder}/c'],)); t.start(); t.join()",
    "again": "train.main(['train', *'{flags}'.split(), '--workdir={folder}/b'])",
}


def result(lines: list[str], beginning: str = "test accuracy ") -> str:
    (line,) = (line for line in lines if line.startswith(beginning))
    return line


@pytest.mark.slow
def test_a_notebook_trains_after_jax_was_used_by_run_by_main_and_in_a_thread(tmp_path):
    cells = [each.format(flags=" ".join(FLAGS), folder=tmp_path) for each in CELLS.values()]
    pages = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(pages, timeout=300).execute()  # raises what a cell raises
    said = {}
    for name, cell in zip(CELLS, pages.cells, strict=True):
        printed = [output.get("text", "") for output in cell.outputs]
        said[name] = "".join(printed).splitlines()
    ends = {result(said[name]).split(",")[0] for name in ("by %run", "by main", "in a thread")}
    assert len(ends) == 1  # the same accuracy
    assert result(said["another command"], "accuracy ")
    assert result(said["again"], f"the run in {tmp_path}/b is already complete")


def test_a_command_in_a_thread_ends_as_in_the_main_thread(tmp_path, capsys):
    thread = threading.Thread(target=train.main, args=(["train", *FLAGS, f"--workdir={tmp_path}"],))
    thread.start()
    thread.join()
    assert result(capsys.readouterr().out.splitlines())
    evaluate.main(["evaluate", f"--workdir={tmp_path}"])
    assert result(capsys.readouterr().out.splitlines(), "accuracy ")


@pytest.mark.parametrize("flags", [FLAGS, ["--help"]], ids=["trains", "helps"])
def test_without_docstrings_and_asserts_it_works(flags, tmp_path):
    argv = [sys.executable, "-m", "lenet_jax.train", *flags, f"--workdir={tmp_path}"]
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("test accuracy " if flags is FLAGS else "--workdir") in done.stdout
