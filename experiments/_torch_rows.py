"""What throughput.py times of PyTorch, in a process that does not import JAX.

ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA choose the process's instruction set. If PyTorch sees a
GPU, the rows run there, and CUDA graphs of whole steps are added.
"""

import sys
from collections.abc import Callable

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from _batches import NUM_BATCHES, NUM_MEMBERS, make_batches
from _timed import Row
from tutorial_net import Net

# Each form has Adam(fused=True): memory layout, and whether it is compiled.
FORMS = {
    "PyTorch eager, contiguous": (torch.contiguous_format, False),
    "PyTorch eager, channels-last": (torch.channels_last, False),
    "PyTorch torch.compile, contiguous": (torch.contiguous_format, True),
    "PyTorch torch.compile, channels-last": (torch.channels_last, True),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPABILITY = torch.backends.cpu.get_cpu_capability()
torch.set_float32_matmul_precision("high")  # TensorFloat-32 on a GPU, as JAX's default there


def forms() -> list[str]:
    """The oldest instructions have the eager forms only: no compiled form was the fastest there."""
    oldest = DEVICE == "cpu" and CAPABILITY == "DEFAULT"
    return [form for form, (_, compiled) in FORMS.items() if not (compiled and oldest)]


def make(group: str, batch_size: int) -> dict[str, Row]:
    torch._dynamo.reset()  # else the next batch size would be compiled for any size, or not at all
    inductor.cpp.simdlen = 256 if CAPABILITY == "AVX2" else None
    return {
        "training": training_rows,
        "colour": lambda size: training_rows(size, 3, ", 3 channels"),
        "members": lambda size: {"PyTorch torch.func": members_row(size)},
        "inference": inference_rows,
    }[group](batch_size)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def form_of(name: str, batch_size: int, channels: int, **mode: str) -> tuple[Net, Callable, tuple]:
    """The network, the function that computes its logits, and the batches in its layout."""
    layout, compiled = FORMS[name]
    images, labels = make_batches(batch_size, channels)
    net = Net(in_channels=channels).to(DEVICE, memory_format=layout)
    pixels = torch.from_numpy(images.transpose(0, 1, 4, 2, 3).copy()).to(DEVICE)
    batches = [batch.to(memory_format=layout) for batch in pixels]
    forward = torch.compile(net, dynamic=False, **mode) if compiled else net
    return net, forward, (batches, torch.from_numpy(labels).long().to(DEVICE))


def training_rows(batch_size: int, channels: int = 1, suffix: str = "") -> dict[str, Row]:
    def row(name: str) -> Row:
        net, forward, (batches, targets) = form_of(name, batch_size, channels)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)

        def run(steps: int) -> None:
            for step in range(steps):
                i = step % NUM_BATCHES
                optimizer.zero_grad()
                F.cross_entropy(forward(batches[i]), targets[i]).backward()
                optimizer.step()
            wait()

        return run

    rows = {f"{name}{suffix}": row(name) for name in forms()}
    for name in forms() if DEVICE == "cuda" else ():
        try:
            rows[f"{name}, CUDA graph{suffix}"] = graph_row(name, batch_size, channels)
        except RuntimeError as error:  # never tried: a form that cannot be captured has no row
            print(f"{name} has no CUDA graph: {error}", file=sys.stderr)
    return rows


def graph_row(name: str, batch_size: int, channels: int) -> Row:
    """A CUDA graph of a whole step for each batch, so that a step is one launch."""
    net, forward, (batches, targets) = form_of(name, batch_size, channels)
    optimizer = torch.optim.Adam(net.parameters(), fused=True, capturable=True)

    def step(i: int) -> None:
        F.cross_entropy(forward(batches[i]), targets[i]).backward()
        optimizer.step()

    side = torch.cuda.Stream()  # warm up as PyTorch's notes on CUDA graphs say
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step(0)
    torch.cuda.current_stream().wait_stream(side)
    graphs = []
    for i in range(NUM_BATCHES):
        optimizer.zero_grad(set_to_none=True)
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[i]):
            step(i)

    def run(steps: int) -> None:
        for i in range(steps):
            graphs[i % NUM_BATCHES].replay()
        wait()

    return run


def inference_rows(batch_size: int) -> dict[str, Row]:
    def row(name: str) -> Row:
        # Frozen weights lie in oneDNN's own layout; on a GPU, the mode adds CUDA graphs.
        mode = {"mode": "reduce-overhead"} if DEVICE == "cuda" else {}
        net, forward, (batches, _) = form_of(name, batch_size, 1, **mode)
        net.eval()

        def run(steps: int) -> None:
            with torch.inference_mode(), inductor.patch(freezing=DEVICE == "cpu"):
                for step in range(steps):
                    forward(batches[step % NUM_BATCHES])
            wait()

        return run

    return {name: row(name) for name in forms()}


def members_row(batch_size: int) -> Row:
    """NUM_MEMBERS networks by torch.func, with plain SGD instead of adam, which is less work."""
    nets = [Net().to(DEVICE) for _ in range(NUM_MEMBERS)]
    params, buffers = torch.func.stack_module_state(nets)
    base = Net().to("meta")
    images, labels = make_batches(batch_size)
    pixels = torch.from_numpy(images.transpose(0, 1, 4, 2, 3).copy()).to(DEVICE)
    targets = torch.from_numpy(labels).long().to(DEVICE)

    def loss_of(params: dict, buffers: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (params, buffers), (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(0, 0, None, None))

    def run(steps: int) -> None:
        for step in range(steps):
            i = step % NUM_BATCHES
            grads = gradients(params, buffers, pixels[i], targets[i])
            with torch.no_grad():
                for name, leaf in params.items():
                    leaf -= 1e-3 * grads[name]
        wait()

    return run
