"""Many processes, one run: who am I, how do gradients meet, who decides to stop.

One process drives one device. The processes come from `launch` (this machine's GPUs, or N
processes on the CPU) or from torchrun (any number of machines), and find each other
through the same environment variables. A batch is divided over them, so the number
of devices changes the speed of a run and nothing that it computes.

Two ways to share a model (`training_params.parallel`): "ddp" keeps a whole copy on each
device and averages gradients once a step; "fsdp" keeps a shard of weights, gradients and
optimizer on each, gathers a block's weights while it computes, and so fits models that
no single device holds.
"""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from modules.console import flush_streams
from modules.devices import pick_device
from modules.errors import UserError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""
    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and talks to the user."""
        return self.rank == 0

    def share_of(self, indices):
        """This process's part of a batch's window indices. Where `count` does not divide their number, parts differ by one."""
        first, end = (rank * len(indices) // self.count for rank in (self.rank, self.rank + 1))
        return indices[first:end]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. All must ask at the same time; no GPU waits for it."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.any(False)


@contextlib.contextmanager
def joined(device_name: str | None) -> Iterator[Processes]:
    """The processes of this run, joined for the duration of the block; just this one where none launched it."""
    if "RANK" not in os.environ:
        yield Processes(0, 1, pick_device(device_name))
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(f"cuda:{local_rank}" if device_name is None and torch.cuda.is_available() else device_name or "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, count = next(rendezvous("env://"))
    # torchrun's store outlives a restart, and with it the addresses of the processes that died: each attempt gets names of its own.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    except UserError:
        if dist.get_rank():
            time.sleep(5)  # a mistake that all processes find is told by the first, whose end ends the others meanwhile
        raise
    finally:
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process, whose work is done and whose files are closed.

    Where it is one of several, without the interpreter's teardown: what torch keeps of a process group (a device mesh,
    a model's reducers) can outlive `destroy_process_group`, and a thread of it that is still ending then
    aborts the process, which its launcher would take for a failure of the run.
    """
    if "RANK" not in os.environ:
        raise SystemExit(status)
    flush_streams()
    os._exit(status)


def launch(n_processes: int, device_name: str | None) -> int:
    """Run this very command in `n_processes` processes of this machine; the exit status, of the first that failed where one did.

    SIGINT and SIGTERM are passed on, so that the run saves and stops. When one process
    fails, the others are ended: they would wait for it for ever.
    """
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(n_processes)}
    if device_name == "cpu" or not torch.cuda.is_available():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_processes)))
    processes = [
        subprocess.Popen([sys.executable, *sys.argv], env=environment | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "BACKPERPLEXITY_LAUNCHER": str(os.getpid())})
        for rank in range(n_processes)
    ]

    def pass_on(signal_number, _frame):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal_number)

    # A terminal's Ctrl-C reaches the whole process group by itself: passing it on would be a second one.
    signal.signal(signal.SIGINT, signal.SIG_IGN if sys.stdin is not None and sys.stdin.isatty() else pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    saved_and_stopped = (128 + signal.SIGINT, 128 + signal.SIGTERM)
    status = 0
    while any(process.poll() is None for process in processes):
        failed = [process.returncode for process in processes if process.poll() not in (None, 0, *saved_and_stopped)]
        if failed and not status:
            status = abs(failed[0])
            time.sleep(2)  # time for the others to fail with an error of their own, which may be the telling one
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return status or max(abs(process.returncode) for process in processes)


def launcher_is_gone() -> bool:
    """Whether the launcher of this process has died (SIGKILL, say): training on would be a run that nobody watches."""
    launcher = os.environ.get("BACKPERPLEXITY_LAUNCHER")
    return launcher is not None and os.getppid() != int(launcher)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Loss(nn.Module):
    """A model whose forward is its loss: DistributedDataParallel watches `forward` alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return self.model.loss(inputs_BT, targets_BT)


def shared_loss(model: nn.Module, how: str, precision: str, processes: Processes) -> tuple[Callable, Callable]:
    """`model` made one over all processes: its loss function, and a context in which gradients stay local.

    `model` is already on its device. With "fsdp" its parameters become shards in place.
    """
    if processes.count == 1 and how == "ddp":
        return model.loss, contextlib.nullcontext
    if how == "fsdp":
        return _fully_sharded(model, precision)
    from torch.nn.parallel import DistributedDataParallel  # imports that a single process need not wait for

    device_ids = [processes.device] if processes.device.type == "cuda" else None
    ddp = DistributedDataParallel(_Loss(model), device_ids=device_ids, gradient_as_bucket_view=True)
    return ddp, ddp.no_sync


def _fully_sharded(model: nn.Module, precision: str) -> tuple[Callable, Callable]:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        raise UserError("training_params.parallel is \"fsdp\", which shards a model over processes: start it with train_parallel.py or torchrun")
    # Weights travel in the dtype of the products; gradients are summed in fp32.
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in getattr(model, "blocks", []):
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    for method in ("loss", "losses", "generate"):  # `forward` is watched by itself
        register_fsdp_forward_method(model, method)

    @contextlib.contextmanager
    def local_gradients():
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    return model.loss, local_gradients
