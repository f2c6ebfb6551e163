"""A training step as one CUDA graph, for models that are small for a GPU.

Such a step is some hundreds of kernels of a few microseconds each, and Python takes longer to ask for them one by one
than the GPU to run them. Recorded once, all are asked for at once. They are the same kernels on the same numbers: a run
has the same losses either way.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

from modules.config import Config
from modules.models import count_parameters
from modules.system import console
from modules.training.parallel import Processes

# Arithmetic of a step below which Python's time to ask for its kernels counts: an H100 takes 5 ms for as much.
SMALL_STEP = 2e12
STEPS_BEFORE = 3  # taken one kernel at a time: they set up what may not be set up while recording

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets


def pick_graph(config: Config, processes: Processes, pays: bool) -> bool:
    """Whether steps are taken as one: by one process, on an NVIDIA GPU, of a model for which compiling pays, where they
    are small. "compile": false leaves it out."""
    params = config.training_params
    alone = processes.count == 1 and params.parallel == "ddp"  # shards are sent for in each step
    asked = pays and params.compile is not False and not params.checkpoint_activations
    return processes.device.type == "cuda" and alone and asked and operations_of_a_step(config) < SMALL_STEP


def operations_of_a_step(config: Config) -> float:
    """6 a parameter and token, as usual."""
    parameters = count_parameters(config.trained_model, **config.model_arguments)
    return 6 * parameters * config.step_windows * config.model_params.context


class StepGraph:
    """Takes the steps of one run. The first few go as usual, then one is recorded, and replayed ever after.

    compute: micro-batches -> the step's mean loss, on the device; changes the weights. Where it cannot be recorded the
    steps go on as usual, after a warning.
    """

    def __init__(self, compute: Callable[[Iterator[Batch]], torch.Tensor], optimizer: torch.optim.Optimizer):
        self._compute, self._optimizer = compute, optimizer
        self._stream = torch.cuda.Stream(optimizer.param_groups[0]["params"][0].device)
        self._before = STEPS_BEFORE
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batches: list[Batch] = []
        self._lr = torch.zeros((), device=self._stream.device)
        self._loss = torch.zeros_like(self._lr)

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed by now."""
        return self._graph is not None

    def step(self, batches: list[Batch]) -> torch.Tensor:
        """One optimizer step on these micro-batches, at the learning rate that the optimizer has."""
        with torch.cuda.device(self._stream.device):
            if self._graph is None and self._before == 0:
                self._record(batches)
            if self._graph is None:
                self._before -= 1
                return self._as_usual(batches)
            for here, new in zip(self._batches, batches, strict=True):
                for of_graph, values in zip(here, new, strict=True):
                    of_graph.copy_(values)
            self._lr.fill_(self._optimizer.param_groups[0]["lr"])
            self._graph.replay()
            return self._loss.clone()

    def _as_usual(self, batches: list[Batch]) -> torch.Tensor:
        """On the stream on which it will be recorded: torch remembers for each weight where its gradient is made."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._compute(iter(batches))
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, batches: list[Batch]) -> None:
        """Record a step; nothing is computed."""
        self._batches = [(inputs_BT.clone(), targets_BT.clone()) for inputs_BT, targets_BT in batches]
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that prepares the next batch goes on meanwhile.
            recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
            with self._lr_on_the_device(), recording:
                self._loss = self._compute(iter(self._batches))
            self._graph = graph
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever cannot be recorded: training goes on without
            console.warn_once(
                f"a step cannot be recorded as a CUDA graph, training without it: {console.reason(error)}"
            )
            self._optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def _lr_on_the_device(self) -> Iterator[None]:
        """Within, the optimizer reads its learning rate from the GPU's memory, where each replay finds its own."""
        groups = self._optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group in groups:
            group["lr"], group["capturable"] = self._lr, True
        try:
            yield
        finally:
            for group, (lr, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = lr, capturable
