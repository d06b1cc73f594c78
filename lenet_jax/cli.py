"""What all commands share: flags made from a dataclass of settings, help, and how they end.

A command ends with 0 when it did its work, 1 when it failed at it, and 2 with one line on stderr
when it was asked for something that cannot be. A signal that it waits for ends it with 128 and the
signal's number, as shells count; so does a reader that has gone, as after `| head`.
"""

import contextlib
import dataclasses
import errno
import gc
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar

import jax
from absl import flags

S = TypeVar("S")
BROKEN_PIPE = 128 + 13  # SIGPIPE, of which Python makes an error instead
CACHE_BYTES = 2**28  # compiled functions on disk, those used last; a run has 3 MB of them
# How many tasks there are, as srun and the mpirun of Open MPI, MPICH and Intel tell each of them.
# Not SLURM_NTASKS: a batch script has it, too, which may start a single task.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    tuple: flags.DEFINE_multi_string,
}


def setting(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    affects_results: bool = True,
    positional: bool = False,
) -> Any:
    """A dataclass field that is a flag: its default, its help line and, for names, the choices.

    A field of type `tuple[str, ...]` is a flag that may be given more than once or, if it is
    `positional`, what stands on the command line besides the flags.

    `affects_results` says whether a run's numbers depend on the setting: if so, the run keeps it.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "affects_results": affects_results,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_choices(settings: Any) -> None:
    """Raises ValueError naming the flag if a setting is not among its field's choices."""
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), field.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise ValueError(f"--{field.name}={value}: choose one of {', '.join(choices)}")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command as the process that it is, wherever its output goes, also nowhere."""
    _replace_dead_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # a name of any bytes, a ± in ASCII
    try:
        try:
            main(sys.argv)
        finally:
            sys.stdout.flush()
    except OSError as error:
        _discard(1)  # else the interpreter would try again, and complain
        if isinstance(error, BrokenPipeError):
            _discard(2)
            raise SystemExit(BROKEN_PIPE) from None
        fail(error if error.filename else f"stdout cannot be written to ({error.strerror})", 1)


def _replace_dead_streams() -> None:
    """Puts the null device where stdout or stderr is closed, or a terminal that has gone.

    A closed one is None in Python, and its number that of the next file, into which XLA would log.
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


def fail(message: object, code: int = 2) -> NoReturn:
    """Ends the command with one line on stderr, unless it is that nobody reads what it prints."""
    if isinstance(message, BrokenPipeError):
        raise message  # to `run`
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


class Interrupted(Exception):
    """A signal has ended the command, which left its work in order; the message says how."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Lets a command end in its own time: signals only enter the list that it looks at.

    They are SIGTERM, Ctrl-C, SIGHUP (the terminal has gone) and SIGUSR1 (a cluster's warning that
    time is up). A second SIGTERM or Ctrl-C ends the process at once.
    """
    received: list[int] = []
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # Windows does not have the last two
    # A shell starts a job in the background with Ctrl-C ignored, nohup SIGHUP: that stays so.
    before = {
        signum: handler
        for signum in (getattr(signal, name) for name in names if hasattr(signal, name))
        if (handler := signal.getsignal(signum)) is not signal.SIG_IGN
    }

    def receive(signum: int, frame: object) -> None:
        received.append(signum)
        _replace_dead_streams()
        for caught in before:  # of a terminal that closes, the shell and the system tell both
            hurries = caught in (signal.SIGTERM, signal.SIGINT)
            signal.signal(caught, signal.SIG_DFL if hurries else signal.SIG_IGN)

    for signum in before:
        signal.signal(signum, receive)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)


def parse(settings_class: type[S], argv: Sequence[str], doc: str) -> S:
    """Turns `argv` (with the program's name) into settings; `--help` prints `doc` and the flags."""
    gc.freeze()  # what was imported is no garbage: JAX traces a quarter faster if left alone
    values = flags.FlagValues()
    types = typing.get_type_hints(settings_class)
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    positional = next((name for name in fields if fields[name].metadata["positional"]), None)
    for name in fields.keys() - {positional}:
        kind = typing.get_origin(types[name])
        if kind is not tuple:  # `str`, or `str | None`
            kinds = typing.get_args(types[name]) or [types[name]]
            kind = next(kind for kind in kinds if kind is not NoneType)
        _DEFINE[kind](name, fields[name].default, fields[name].metadata["help"], flag_values=values)
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=values)
    try:
        rest = values(argv)[1:]
        if values.help:
            print(_help(settings_class, doc))
            raise SystemExit(0)
        if rest and not positional:
            raise ValueError(f"{rest[0]!r} is not a flag; flags are written --name=value")
        chosen = {name: values[name].value for name in fields.keys() - {positional}}
        chosen |= {positional: rest} if positional else {}
        settings = settings_class(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
        )
    except BrokenPipeError:  # the help's
        raise
    except (flags.Error, ValueError, OSError) as error:  # OSError: a --flagfile that is not there
        fail(f"{error} (--help lists the flags)")
    _require_one_task()
    return settings


def _require_one_task() -> None:
    """Ends a command that was started many times over, as if its processes shared the work."""
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


def enable_compilation_cache() -> None:
    """Keeps what JAX compiles in the user's cache folder; JAX_COMPILATION_CACHE_DIR goes first."""
    config = jax.config
    with contextlib.suppress(OSError, RuntimeError):  # a read-only home, or none, costs only time
        if config.jax_compilation_cache_dir:
            _remove_executables(Path(config.jax_compilation_cache_dir))
            return
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home, "lenet_jax")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_executables(folder)
        # A process that was killed, or a version that set no limit to the size, leaves entries
        # without the time of their last use; as long as there is one, JAX adds no others.
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink(missing_ok=True)
        if os.access(folder, os.W_OK):
            config.update("jax_compilation_cache_dir", str(folder))
            config.update("jax_compilation_cache_max_size", CACHE_BYTES)
            config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
            config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_executables(cache: Path) -> None:
    """Removes what version 0.1 kept beside JAX's entries: some of it could not be read again."""
    for file in cache.glob(f"executables/{'[0-9a-f]' * 64}*"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or holds what is not ours
        (cache / "executables").rmdir()


def make_cores_devices() -> None:
    """Makes each core a device, to share batches or populations; only before JAX is used at all.

    NPROC, which says how many cores JAX may use, and JAX_NUM_CPU_DEVICES go first.
    """
    if jax.config.jax_num_cpu_devices == -1:
        jax.config.update("jax_num_cpu_devices", count_cores())


def count_cores() -> int:
    """As XLA:CPU counts them; the bits of its results depend on it."""
    chosen = os.environ.get("NPROC", "")
    if chosen.isdecimal() and int(chosen):
        return int(chosen)
    allowed = getattr(os, "sched_getaffinity", None)  # Linux: those that this process may use
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _help(settings_class: type, doc: str) -> str:
    lines = [doc.strip(), "", "Flags:"]
    for field in dataclasses.fields(settings_class):
        name = f"--[no]{field.name}" if isinstance(field.default, bool) else f"--{field.name}"
        name = f"{field.name} ..." if field.metadata["positional"] else name
        choices = field.metadata["choices"]
        default = "" if field.default in (None, ()) else f" (default: {field.default})"
        lines.append(f"  {name}" + (f"  {{{', '.join(choices)}}}" if choices else ""))
        lines.append(f"      {field.metadata['help']}{default}")
    lines.append("  --flagfile\n      a file with one flag a line")
    return "\n".join(lines)
