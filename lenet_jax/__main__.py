"""All commands under one name: `lenet-jax train` is `python -m lenet_jax.train`."""

import difflib
import importlib
from collections.abc import Sequence

import lenet_jax
from lenet_jax import cli

COMMANDS = {  # by the name of their module
    "predict": "reads the digits in pictures, with or without a run",
    "train": "trains the network, or continues a run",
    "evaluate": "measures a network: accuracy, confusion, calibration",
    "report": "makes an HTML page of a run: curves, mistakes, filters",
    "export": "takes a network to PyTorch, ONNX, or a page to draw on",
    "sweep": "compares optimizers and learning rates",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"lenet-jax {lenet_jax.__version__}: the LeNet of PyTorch's tutorial in JAX",
            "",
            *(f"  lenet-jax {name:{width}}   {what}" for name, what in COMMANDS.items()),
            "",
            "lenet-jax COMMAND --help explains a command and its flags.",
        ]
    )


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command that `argv` (with the program's name) names."""
    match argv[1:]:
        case [] | ["--help" | "-h", *_]:
            print(usage())
        case ["--version", *_]:
            print(f"lenet_jax {lenet_jax.__version__}")
        case [name, *flags] if name in COMMANDS:
            importlib.import_module(f"lenet_jax.{name}").main([f"lenet-jax {name}", *flags])
        case [name, *_]:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
            cli.fail(f"{name!r} is not a command; {hint}")


def main() -> None:
    cli.run(dispatch)


if __name__ == "__main__":
    main()
