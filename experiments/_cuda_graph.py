"""CUDA graphs of PyTorch's training steps, so that a step is one launch."""

from collections.abc import Callable

import torch


def warm_up(optimizer: torch.optim.Optimizer, step: Callable[[], None]) -> None:
    """Runs three steps on a side stream, as PyTorch's notes on CUDA graphs ask before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(side)


def capture(optimizer: torch.optim.Optimizer, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The graph of a step that was warmed up; `step` leaves the gradients to the graph."""
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
