import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenet_jax import cli
from lenet_jax.run.settings import Settings


@dataclasses.dataclass(frozen=True)
class Few:
    name: str = cli.setting("a", "which", ("a", "b"))
    count: int | None = cli.setting(None, "how many")
    share: float = cli.setting(0.5, "how much")
    quick: bool = cli.setting(True, "or not")

    def __post_init__(self) -> None:
        cli.check(self)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Few()),
        (["--name=b", "--count=3"], Few(name="b", count=3)),
        (["--share", "1e-3", "--noquick"], Few(share=1e-3, quick=False)),
        (["--quick=false"], Few(quick=False)),
    ],
)
def test_flags_fill_the_dataclass_in_its_types(argv, expected):
    assert cli.parse(Few, ["prog", *argv], "doc") == expected


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--lr=0.1", "learning_rate"), ("--bs=8", "batch_size"), ("--epoch", "epochs")],
)
def test_an_unknown_flag_brings_the_flag_that_was_meant(flag, meant, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Settings, ["prog", flag], "doc")
    assert exit_info.value.code == 2
    assert f"Did you mean: {meant} ?" in capsys.readouterr().err


def test_a_flagfile_is_read(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--count=7\n# a comment\n--name=b\n")
    assert cli.parse(Few, ["prog", f"--flagfile={path}"], "doc") == Few(name="b", count=7)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "is not a text file in UTF-8"),
        ("latin-1", "is not a text file in UTF-8"),
        ("utf-8-sig", "byte-order mark"),
    ],
)
def test_a_flagfile_in_another_encoding_is_one_line(encoding, words, tmp_path, capsys):
    path = tmp_path / "flags"
    path.write_text("--name=b\n# é\n", encoding)
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog", f"--flagfile={path}"], "doc")
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert (str(path) in err) == (encoding != "utf-8-sig")


@dataclasses.dataclass(frozen=True)
class Several:
    files: tuple[str, ...] = cli.setting((), "what to read", positional=True)
    folder: tuple[str, ...] = cli.setting((), "where to look")
    quick: bool = cli.setting(True, "or not")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Several()),
        (["a", "b"], Several(files=("a", "b"))),
        (["--folder=x", "a", "--noquick", "b"], Several(("a", "b"), ("x",), False)),
        (["--folder=x", "--folder", "y", "--", "--a"], Several(("--a",), ("x", "y"))),
    ],
)
def test_what_is_no_flag_and_a_flag_given_twice_become_tuples(argv, expected):
    assert cli.parse(Several, ["prog", *argv], "doc") == expected


def test_help_shows_what_is_no_flag_as_such(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Several, ["prog", "--help"], "doc")
    out = capsys.readouterr().out
    assert "\n  files ...\n      what to read\n  --folder\n      where to look\n" in out


@pytest.mark.parametrize("bad", ["--nmae=b", "--name=c", "--count=x", "--count=1.5", "b"])
def test_what_it_does_not_understand_ends_in_one_line_and_code_2(bad, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog", bad], "doc")
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert bad.strip("-").split("=")[0] in err


def test_help_has_the_doc_and_each_flag_with_default_and_choices(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog", "--help"], "What it does.")
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("What it does.")
    for line in ("--name  {a, b}", "which (default: a)", "--count", "--[no]quick"):
        assert line in out


@pytest.mark.parametrize("name", cli.TASK_COUNTS)
def test_one_of_many_tasks_is_refused_with_what_to_do_unless_it_says_that_it_is_alone(
    name, capsys, monkeypatch
):
    monkeypatch.setenv(name, "4")
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog"], "doc")
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"error: {name}=4: ")
    assert f"set {name}=1" in err
    monkeypatch.setenv(name, "1")
    assert cli.parse(Few, ["prog"], "doc") == Few()


def test_a_batch_script_with_room_for_many_tasks_may_start_a_command(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert cli.parse(Few, ["prog"], "doc") == Few()


def test_a_command_in_joined_processes_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Few, ["prog"], "doc")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: jax.distributed is initialized: ")


def test_an_error_of_many_lines_becomes_one(capsys):
    with pytest.raises(SystemExit):
        cli.fail("first\n  second", code=1)
    assert capsys.readouterr().err == "error: first second\n"


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (ValueError("--seed=x: wrong"), 2, "", "error: --seed=x: wrong\n"),
        (OSError("a: full"), 1, "", "error: a: full; try --output\n"),
        (KeyboardInterrupt(), 130, "stopped here\n", ""),
    ],
    ids=["asked wrongly", "the machine", "Ctrl-C"],
)
def test_an_error_ends_the_command_with_one_line_and_its_code(error, code, out, err, capsys):
    with (
        pytest.raises(SystemExit) as exit_info,
        cli.exit_on_error("; try --output", "stopped here"),
    ):
        raise error
    assert (exit_info.value.code, *capsys.readouterr()) == (code, out, err)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), RuntimeError("ours")])
def test_a_pipe_that_has_gone_and_a_mistake_of_ours_pass(error, capsys):
    with pytest.raises(type(error)), cli.exit_on_error("; try --output"):
        raise error
    assert capsys.readouterr() == ("", "")


NAMES = [field.name for field in dataclasses.fields(Settings)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # no argument can be half a character
VALUES = st.one_of(
    TEXT,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["adam", "digits", "onecycle", "true", "1e3", "-0", "nan", "", "--", "\n"]),
)
FLAGS = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(NAMES), VALUES),
    st.sampled_from([*(f"--{name}" for name in NAMES), "--noresume", "--nokeep", "--help", "-h"]),
    VALUES,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FLAGS.filter(lambda flag: "flagfile" not in flag), max_size=4))
def test_any_flags_are_settings_or_help_or_one_line_and_code_2(argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            parsed = cli.parse(Settings, ["prog", *argv], "doc")
        except SystemExit as end:
            parsed = end.code
    said = bool(out.getvalue()), err.getvalue().count("\n")
    assert (isinstance(parsed, Settings), parsed, *said) in [
        (True, parsed, False, 0),
        (False, 0, True, 0),
        (False, 2, False, 1),
    ]


STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture
def as_in_a_terminal():
    """No signal is ignored, as nohup would have it."""
    before = {caught: signal.signal(caught, signal.SIG_DFL) for caught in STOPS}
    yield
    for caught, handler in before.items():
        signal.signal(caught, handler)


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("signum", STOPS)
def test_a_first_signal_is_only_noted_and_a_second_would_end_the_process(signum):
    before = {caught: signal.getsignal(caught) for caught in STOPS}
    with cli.catch_signals() as received:
        assert received == []
        signal.raise_signal(signum)
        assert received == [signum]
        assert {signal.getsignal(caught) for caught in STOPS[:2]} == {signal.SIG_DFL}
        for again in STOPS[2:]:  # a terminal that closes sends its own more than once
            signal.raise_signal(again)
        assert received == [signum]
    assert {caught: signal.getsignal(caught) for caught in before} == before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cli.catch_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert received == []
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_a_stop_by_a_signal_has_its_name_and_the_shells_code(signum, code):
    stop = cli.Interrupted(signum, "saved")
    assert str(stop) == f"stopped by {signal.Signals(signum).name}: saved"
    assert stop.exit_code == code


def run_in_shell(redirection: str, code: str) -> subprocess.CompletedProcess:
    """A command of these lines, in a process of its own."""
    script = "import os, sys; from lenet_jax import cli\ndef main(argv):\n    "
    script += "\n    ".join(code.splitlines()) + "\ncli.run(main)"
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash"]
    return subprocess.run([*shell, sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "for _ in range(10**6): print('a line')",
        "for _ in range(10**6):\n  try: print('a line')\n  except OSError as e: cli.fail(e, 1)",
        "import time; print('a line', flush=True); time.sleep(0.5); print('b'); cli.fail('bad')",
    ],
    ids=["in between", "where errors are told", "at the end"],
)
def test_a_reader_that_has_gone_ends_it_quietly_as_cat(code):
    done = run_in_shell("| head -1", code)
    said = done.stderr.replace("error: bad\n", "")  # which came before the pipe was noticed
    assert (done.returncode, done.stdout, said) == (141, "a line\n", "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nothing_to_a_command(redirection):
    code = """from tqdm import tqdm
for _ in tqdm(range(2), disable=None): tqdm.write("said"); sys.stdout.flush()
os.write(2, b"as XLA does")
assert open("/dev/null").fileno() not in (1, 2)"""
    assert run_in_shell(redirection, code).returncode == 0


def test_a_full_disk_behind_stdout_is_one_line():
    done = run_in_shell("> /dev/full", "print('said')")
    assert done.returncode == 1
    assert done.stderr == "error: stdout cannot be written to (No space left on device)\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "MemoryError('bad_alloc')",
            "too little memory (bad_alloc): close other programs, or raise `ulimit -v`",
        ),
        ('RuntimeError("can\'t start new thread")', "can't start new thread"),
        ("OSError(24, 'Too many open files', 'a.png')", "[Errno 24] Too many open files: 'a.png'"),
        ("OSError(24, 'Too many open files')", "[Errno 24] Too many open files"),
        ("jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')", "RESOURCE_EXHAUSTED"),
    ],
)
def test_an_error_of_the_machine_is_one_line_that_names_it(error, words):
    done = run_in_shell("", f"import jax\nraise {error}")
    assert (done.returncode, done.stderr) == (1, f"error: {words}\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    done = run_in_shell("", "raise RuntimeError('ours')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


@pytest.mark.parametrize("platforms", ["cuda", "nonsense", "gpu,cpu"])
def test_a_platform_that_is_missing_is_named_in_one_line(platforms):
    done = subprocess.run(
        [sys.executable, "-c", "from lenet_jax import cli; cli.run(lambda argv: cli.start_jax())"],
        env=os.environ | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platforms} ")
    assert done.stderr.count("\n") == 1


class OnlyWrites:
    """What a notebook or a test may put in the place of stdout."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def test_stdout_may_be_anything_with_a_write(monkeypatch):
    stream = OnlyWrites()
    monkeypatch.setattr(sys, "stdout", stream)
    cli.run(lambda argv: cli.print_line("a line"))
    assert stream.text == "a line\n"


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with cli.catch_signals() as signals:
            seen.append((list(signals), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_devices_stay_as_they_are_once_jax_was_used():
    before = jax.devices()
    cli.start_jax(cache=False, cores_are_devices=True)
    assert jax.devices() == before


def test_a_name_of_any_bytes_can_be_printed():
    done = run_in_shell("", "print('\\udcff ±')")
    assert (done.returncode, done.stdout) == (0, "\\udcff ±\n")


@pytest.mark.parametrize("nproc", ["many", "0", ""])
def test_an_nproc_that_is_no_number_of_cores_is_as_none(nproc, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    real = cli.count_cores()
    monkeypatch.setenv("NPROC", nproc)
    assert cli.count_cores() == real > 0


@pytest.mark.parametrize(("variable", "count"), [("NPROC", 3), ("JAX_NUM_CPU_DEVICES", 4)])
def test_cores_become_devices_unless_the_environment_says_otherwise(variable, count):
    program = "import jax; from lenet_jax import cli; cli.start_jax(cores_are_devices=True); "
    done = subprocess.run(
        [sys.executable, "-c", program + "print(len(jax.devices('cpu')))"],
        env={**os.environ, "NPROC": "3", variable: str(count)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == count


def test_importing_configures_nothing():
    script = (
        "import jax; before = dict(jax.config.values); import lenet_jax.train; "
        "assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
