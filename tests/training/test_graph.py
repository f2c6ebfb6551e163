"""A step that cannot be recorded as a CUDA graph. What a GPU records and replays: test_cuda.py."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from modules.training.graph import STEPS_BEFORE, StepGraph


@pytest.fixture
def no_graphs(monkeypatch):
    """A torch whose GPU is the CPU, and records nothing."""
    stream = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda which: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)

    def fails(error):
        @contextlib.contextmanager
        def recording(*given, **named):
            yield
            raise error

        monkeypatch.setattr(torch.cuda, "graph", recording)

    return fails


def stepped(steps: int) -> tuple[list[float], list[float]]:
    """Weights after each of `steps` steps as a graph would take them, and as they are taken without one."""
    weights = []
    for graphed in (True, False):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([weight], lr=0.1)

        def compute(batches, weight=weight, optimizer=optimizer):
            recording = isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
            ((inputs, targets),) = batches
            loss = ((weight * inputs - targets) ** 2).mean()
            loss.backward()
            if not recording:  # a GPU computes nothing then
                optimizer.step()
                optimizer.zero_grad()
            return loss.detach()

        batch = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
        step = StepGraph(compute, optimizer).step if graphed else compute
        weights.append([])
        for _ in range(steps):
            step([batch])
            weights[-1].append(weight.item())
        assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.param_groups[0]["capturable"]
    return tuple(weights)


def test_where_a_step_cannot_be_recorded_they_go_on_as_usual(no_graphs, capsys):
    no_graphs(RuntimeError("not permitted when stream is capturing"))
    here, usual = stepped(STEPS_BEFORE + 3)
    assert here == usual and len(set(here)) == len(here)
    assert capsys.readouterr().err.count("cannot be recorded as a CUDA graph, training without it: not permitted") == 1


def test_too_little_memory_is_another_matter(no_graphs):
    no_graphs(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        stepped(STEPS_BEFORE + 1)
