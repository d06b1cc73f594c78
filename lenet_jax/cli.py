"""What all commands share: flags made from a dataclass of settings, help, JAX's start, exit codes.

A command exits with 0 when it has done its work, with 1 when it failed, and with 2 and one line on
stderr when it was given something impossible. A signal that it handles ends it with 128 plus the
signal's number, as shells count; so does a closed pipe, as after `| head`.

Packages of extras are imported in functions, so that a command without its extra gets as far as
`run`, which says what to install.
"""

import contextlib
import dataclasses
import errno
import gc
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import jax
from absl import flags

from lenet_jax.compilation_cache import enable_compilation_cache

if TYPE_CHECKING:
    from tqdm import tqdm

S = TypeVar("S")
Log = Callable[[str], None]  # gets a line for a person
BROKEN_PIPE = 128 + 13  # SIGPIPE, which Python turns into an error
# The number of tasks, as srun and the mpirun of Open MPI, MPICH and Intel give it to each task.
# Not SLURM_NTASKS: a batch script has it too, although it may start a single task.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# The extras of pyproject.toml, with the names by which their packages are imported.
EXTRAS = {
    "train": (
        *("absl", "tqdm", "filelock", "sklearn", "tensorflow_datasets", "importlib_resources"),
        *("tensorboardX", "PIL", "scipy"),
    ),
    "report": ("matplotlib",),
    "export": ("safetensors", "onnx"),
    "cluster": ("distributed",),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    tuple[str, ...]: flags.DEFINE_multi_string,
}
_DEFINE |= {kind | None: define for kind, define in _DEFINE.items()}


class Valid(NamedTuple):
    """Which values a setting may have, as a test and in words."""

    test: Callable[[Any], bool]  # NaN fails every comparison
    words: str


def at_least(low: float) -> Valid:
    return Valid(lambda value: low <= value < math.inf, f"at least {low:g}")


def between(low: int, high: int) -> Valid:
    return Valid(lambda value: low <= value <= high, f"from {low} to {high}")


def setting(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    valid: Valid | None = None,
    missing: str = "",
    affects_results: bool = True,
    positional: bool = False,
) -> Any:
    """A dataclass field that is a flag.

    Args:
      default: None means that the command decides.
      choices, valid: the names or numbers that may be given. See `check`.
      missing: what to give, for the message if the setting is None or empty and must not be.
      affects_results: whether a run's numbers depend on it, so that a resumed run must keep it.
      positional: the field, a `tuple[str, ...]`, holds the arguments that are not flags. Without
        it, such a field is a flag that may be given more than once.
    """
    metadata = {"help": help, "choices": tuple(choices), "valid": valid, "missing": missing}
    metadata |= {"affects_results": affects_results, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: Any) -> None:
    """Raises ValueError that names the flag if a setting is not what its field allows."""
    for field in dataclasses.fields(settings):
        value, flag, rule = getattr(settings, field.name), f"--{field.name}", field.metadata
        if rule["missing"] and value in (None, ()):
            named = "" if rule["positional"] else f"{flag} is missing: "
            raise ValueError(f"{named}{rule['missing']}")
        if value is not None and rule["choices"] and value not in rule["choices"]:
            raise ValueError(f"{flag}={value}: choose one of {', '.join(rule['choices'])}")
        if value is not None and rule["valid"] and not rule["valid"].test(value):
            raise ValueError(f"{flag}={value}: must be {rule['valid'].words}")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command as a process, wherever its output goes, and ends it with one line if it fails.

    What is wrong with the machine (a full disk, no memory, no file handles, no threads, a package
    that is not installed) is named; only a mistake in this package shows a traceback.
    """
    _replace_dead_streams()
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream is not a file
        sys.stdout.reconfigure(errors="backslashreplace")  # for file names of any bytes, and ±
    try:
        try:
            main(sys.argv)
        finally:
            _flush_stdout()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
        if extra is None:
            raise
        fail(f"{package} is not installed: in lenet_jax's checkout, pip install -e '.[{extra}]'")
    except OSError as error:
        _discard(1)  # else the interpreter would try to flush it again and complain
        if isinstance(error, BrokenPipeError):
            _discard(2)
            raise SystemExit(BROKEN_PIPE) from None
        if error.errno in _FULL and not error.filename:
            fail(f"stdout cannot be written to ({error.strerror})", 1)
        fail(error, 1)
    except MemoryError as error:
        cause = f" ({error})" if str(error) else ""
        fail(f"too little memory{cause}: close other programs, or raise `ulimit -v`", 1)
    except RuntimeError as error:
        if not isinstance(error, jax.errors.JaxRuntimeError) and "new thread" not in str(error):
            raise
        fail(error, 1)


def print_line(line: str) -> None:
    """Prints a line at once, also into a file, and above a progress bar."""
    from tqdm import tqdm

    tqdm.write(line)
    _flush_stdout()


def progress_bar(*args: Any, **kwargs: Any) -> "tqdm":
    """tqdm's bar, but only on a terminal, where it disappears when it is closed."""
    from tqdm import tqdm

    return tqdm(*args, leave=False, disable=None, **kwargs)


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "epoch"), count(5, "epoch")
    ('1 epoch', '5 epochs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


@contextlib.contextmanager
def shown_while(text: str, log: Log) -> Iterator[None]:
    """Shows `text` while its block runs: on a terminal until the block ends, else as a line."""
    with progress_bar(bar_format=text) as bar:
        if bar.disable:
            log(text)
        yield


def _flush_stdout() -> None:
    getattr(sys.stdout, "flush", lambda: None)()  # a program may have replaced it


def _replace_dead_streams() -> None:
    """Puts the null device where stdout or stderr is closed, or is a terminal that has gone.

    Python has None for a closed stream; the next file that is opened gets its number, and XLA
    would log into that file.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.write(number, b"")
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EIO):  # and not if its disk is full
                _discard(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _discard(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


@contextlib.contextmanager
def exit_on_error(hint: str = "", stopped: str = "stopped by Ctrl-C") -> Iterator[None]:
    """Ends the command with one line if its block raises an error that is not a mistake of ours.

    `hint` follows the message of an OSError; `stopped` is the line on stdout after Ctrl-C.
    """
    try:
        yield
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(error, 1, hint)
    except KeyboardInterrupt:
        print(stopped)
        raise SystemExit(128 + signal.SIGINT) from None


def fail(message: object, code: int = 2, hint: str = "") -> NoReturn:
    """Ends the command with one line on stderr, except on a broken pipe."""
    if isinstance(message, BrokenPipeError):
        raise message  # to `run`
    print(f"error: {' '.join(str(message).split())}{hint}", file=sys.stderr)
    raise SystemExit(code)


class Interrupted(Exception):
    """A signal has ended the command after it saved its work; the message says how to go on."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects signals in a list, so that a command can save its work before it ends.

    They are SIGTERM, Ctrl-C, SIGHUP (the terminal has gone) and SIGUSR1 (a cluster's warning that
    time is up). A second SIGTERM or Ctrl-C ends the process at once. Outside the main thread Python
    handles no signals, and the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows does not have the last two
    # A shell's background job ignores Ctrl-C, and a job under nohup SIGHUP: that stays so.
    before = {
        signum: handler
        for signum in (getattr(signal, name) for name in names if hasattr(signal, name))
        if (handler := signal.getsignal(signum)) is not signal.SIG_IGN
    }

    def receive(signum: int, frame: object) -> None:
        received.append(signum)
        _replace_dead_streams()
        for caught in before:  # when a terminal closes, the shell and the system both send SIGHUP
            hurries = caught in (signal.SIGTERM, signal.SIGINT)
            signal.signal(caught, signal.SIG_DFL if hurries else signal.SIG_IGN)

    for signum in before:
        signal.signal(signum, receive)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def parse(settings_class: type[S], argv: Sequence[str], doc: str | None) -> S:
    """Turns `argv` (with the program's name) into settings; `--help` prints `doc` and the flags."""
    gc.freeze()  # exclude imported objects from garbage collection: JAX traces a quarter faster
    values, fields = flags.FlagValues(), dataclasses.fields(settings_class)
    positional = [field.name for field in fields if field.metadata["positional"]]
    named = [field for field in fields if field.name not in positional]
    for field in named:
        _DEFINE[field.type](field.name, field.default, field.metadata["help"], flag_values=values)
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=values)
    try:
        rest = values(argv)[1:]
        if values.help:
            print(_help(settings_class, doc))
            raise SystemExit(0)
        if rest and not positional:
            has_mark = rest[0].startswith("\ufeff")
            mark = "; the file of flags starts with a byte-order mark" if has_mark else ""
            raise ValueError(f"{rest[0]!r} is not a flag; flags are written --name=value{mark}")
        chosen = {field.name: values[field.name].value for field in named}
        chosen |= dict.fromkeys(positional, rest)
        settings = settings_class(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        )
    except BrokenPipeError:  # while the help was printed
        raise
    except flags.UnrecognizedFlagError as error:
        # absl suggests names that are spelled alike; many people write initials, such as --lr.
        initials = lambda name: "".join(word[0] for word in name.split("_"))
        meant = [field.name for field in named if initials(field.name) == error.flagname]
        better = flags.UnrecognizedFlagError(error.flagname, suggestions=meant) if meant else error
        fail(f"{better} (--help lists the flags)")
    except UnicodeDecodeError as error:
        file = next((each for each in argv if "flagfile" in each), "--flagfile")
        fail(f"{file}: is not a text file in UTF-8 ({error})")
    except (flags.Error, ValueError, OSError) as error:  # OSError: --flagfile names no file
        fail(f"{error} (--help lists the flags)")
    _require_one_task()
    import tqdm  # noqa: F401  without the extra a command ends before it writes anything

    return settings


def _require_one_task() -> None:
    """Ends a command that was started as several tasks, as if they shared the work."""
    elsewhere = "sweep --scheduler spreads networks over machines, train_epoch(mesh=) one network"
    for name in TASK_COUNTS:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            fail(
                f"{name}={count}: a command does not share its work among tasks; start one, or "
                f"set {name}=1 for tasks that each have a --workdir of their own ({elsewhere})"
            )
    if jax.distributed.is_initialized():
        fail(f"jax.distributed is initialized: a command works in one process ({elsewhere})")


def start_jax(*, cache: bool = True, cores_are_devices: bool = False) -> None:
    """Starts JAX for a command, or ends the command with what JAX says.

    Args:
      cache: whether compiled functions are kept on disk.
      cores_are_devices: whether each core becomes a device, so that they share batches or
        populations. NPROC, which says how many cores JAX may use, and JAX_NUM_CPU_DEVICES take
        precedence. If the process has used JAX before, its devices stay as they are.
    """
    if cache:
        enable_compilation_cache()
    if cores_are_devices and jax.config.jax_num_cpu_devices == -1:
        with contextlib.suppress(RuntimeError):  # JAX has been used
            jax.config.update("jax_num_cpu_devices", count_cores())
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: for a platform without plugin
        chosen = os.environ.get("JAX_PLATFORMS")
        cause = f"JAX_PLATFORMS={chosen} (without it JAX chooses): " if chosen else ""
        reason = str(error) or "it has no such platform"
        fail(f"{cause}JAX cannot start on this machine: {reason}", 1)


def count_cores() -> int:
    """The cores that this process may use, as XLA:CPU counts them; its bits depend on them."""
    chosen = os.environ.get("NPROC", "")
    if chosen.isdecimal() and int(chosen):
        return int(chosen)
    allowed = getattr(os, "sched_getaffinity", None)  # on Linux only
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _help(settings_class: type, doc: str | None) -> str:
    lines = [(doc or "").strip(), "", "Flags:"]  # Python -OO drops docstrings
    for field in dataclasses.fields(settings_class):
        name = f"--[no]{field.name}" if isinstance(field.default, bool) else f"--{field.name}"
        name = f"{field.name} ..." if field.metadata["positional"] else name
        choices = field.metadata["choices"]
        default = "" if field.default in (None, ()) else f" (default: {field.default})"
        lines.append(f"  {name}" + (f"  {{{', '.join(choices)}}}" if choices else ""))
        lines.append(f"      {field.metadata['help']}{default}")
    lines.append("  --flagfile\n      a file with one flag per line")
    return "\n".join(lines)
