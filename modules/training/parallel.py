"""Many processes, one run: who am I, how do gradients meet, who decides to stop.

One process drives one device. The processes come from `launch` (this machine's GPUs, or N processes on the CPU) or from
torchrun (any number of machines), and find each other through the same environment variables. A batch is divided over
them: without dropout the number of devices changes the speed of a run and, but for rounding, nothing that it computes.
With dropout each process makes random choices of its own, so that another number of them is like another seed: torch's
fused attention draws by the place of a window in its own call, which no seed from outside makes the same.

torch's own launcher (elastic_launch, 2.13) also passes signals on and waits, but then forgets how the processes ended,
so that a state that could not be saved would count as saved; and its second SIGINT is another SIGTERM, where ours ends
all at once. For several machines torchrun is used as it is.

Two ways to share a model (`training_params.parallel`): "ddp" keeps a whole copy on each
device and averages gradients once a step; "fsdp" keeps a shard of weights, gradients and
optimizer on each, gathers a block's weights while it computes, and so fits models that
no single device holds.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from modules.models import LanguageModel
from modules.system.children import Child, how_it_ended, start_child, status_of, supervise
from modules.system.console import flush_streams, tell
from modules.system.errors import UserError
from modules.system.processes import Process, available_cores, integer_variable, this_process
from modules.training.devices import pick_device

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")


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
        """This process's part of a batch's window indices. Where `count` does not divide their number, parts differ by
        one."""
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
    """The processes of this run, joined for the duration of the block; just this one where none launched it.

    Raises UserError where the environment of a launch is not whole, or the processes do not meet.
    """
    process = this_process()
    if not process.launched:
        yield Processes(0, 1, pick_device(device_name))
        return
    if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise UserError(
            "environment: RANK and WORLD_SIZE say that this is one of several processes, but there is no "
            f"{' and no '.join(missing)} by which they could meet; start them with torchrun or train_parallel.py, "
            "or unset RANK"
        )
    integer_variable("MASTER_PORT", most=2**16 - 1)
    device = pick_device(device_name_of(process, device_name, torch.cuda.device_count()))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, count = next(rendezvous("env://"))
        # torchrun's store outlives a restart, and with it the addresses of the processes that died: each attempt gets
        # names of its own.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=count
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {process.rank} of {process.world_size} cannot meet the others at "
            f"{':'.join(os.environ[name] for name in RENDEZVOUS)}: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    except UserError:
        if dist.get_rank():
            time.sleep(20)  # all processes hit this error; the others wait so that the first alone reports it
        raise
    finally:
        dist.destroy_process_group()


def device_name_of(process: Process, name: str | None, n_gpus: int) -> str:
    """The name of the device of one of several processes: its own of the machine's GPUs, or the CPU, which all share.

    name: what `-d` says. UserError where there is no device for it.
    """
    if n_gpus and name in (None, "cuda"):
        if process.local_rank >= n_gpus:
            raise UserError(
                f"no GPU for the process of LOCAL_RANK {process.local_rank}: there are {n_gpus}, "
                "and one process drives one"
            )
        return f"cuda:{process.local_rank}"
    if name not in (None, "cpu") and process.local_world_size > 1:
        raise UserError(
            f"-d {name}: expected no number of a device for {process.local_world_size} processes, "
            "each of which has one of its own"
        )
    return name or "cpu"


def leave(status: int) -> NoReturn:
    """End this process, whose work is done and whose files are closed.

    Where it is one of several, without the interpreter's teardown: what torch keeps of a process group (a device mesh,
    a model's reducers) can outlive `destroy_process_group`, and a thread of it that is still ending then
    aborts the process, which its launcher would take for a failure of the run.
    """
    if not this_process().launched:
        raise SystemExit(status)
    flush_streams()
    os._exit(status)


def launch(n_processes: int, device_name: str | None, n_gpus: int) -> int:
    """Run this very command in `n_processes` processes of this machine; the exit status, of the first that failed where
    one did.

    n_gpus: of this machine. SIGINT and SIGTERM are passed on, so that the run saves and stops. When one process fails,
    the others are ended: they would wait for it for ever. When this one dies, they stop.
    """
    on_gpus = n_gpus > 0 and (device_name or "cuda").startswith("cuda")
    if on_gpus and n_processes > n_gpus:
        raise UserError(
            f"--nproc {n_processes}: one process drives one GPU, and there are {n_gpus}; with -d cpu they share the CPU"
        )
    # They meet at a port of this process, which the system chose: one that was free and is now to be taken again may be
    # somebody else's.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
    }
    if not on_gpus:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // n_processes)))

    waiting = iter(range(n_processes))

    def start_next(_running: Sequence[Child]) -> Child | None:
        rank = next(waiting, None)
        if rank is None:
            return None
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return Child(f"process {rank}", start_child([sys.executable, *sys.argv], environment | ranks))

    saved_and_stopped = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    children, came = supervise(start_next, together=True)
    codes = [child.process.returncode for child in children]
    failed = next((child for child in children if child.failed(saved_and_stopped)), None)
    if failed is not None:
        code = failed.process.returncode
        if code < 0:  # else it has told itself
            tell(
                f"error: {failed.name} of {n_processes} {how_it_ended(code)}; the state saved last is as it was",
                sys.stderr,
            )
        return status_of(code)
    if came and (len(codes) < n_processes or min(codes) < 0):
        return 128 + came[0]  # one had not come to training yet: there was nothing to save
    return max(codes)


class _Loss(nn.Module):
    """A model whose forward is its loss: DistributedDataParallel watches `forward` alone."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return self.model.loss(inputs_BT, targets_BT)


def shared_loss(model: LanguageModel, how: str, precision: str, processes: Processes) -> tuple[Callable, Callable]:
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


def _fully_sharded(model: LanguageModel, precision: str) -> tuple[Callable, Callable]:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not dist.is_initialized():
        raise UserError(
            'training_params.parallel is "fsdp", which shards a model over processes: start it with train_parallel.py '
            "or torchrun"
        )
    # Weights travel in the dtype of the products; gradients are summed in fp32.
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in model.parts():
        fully_shard(part, mp_policy=policy)
    sharded = fully_shard(model, mp_policy=policy)
    for method in ("loss", "losses", "next_logits"):  # `forward` is watched by itself
        register_fsdp_forward_method(model, method)

    @contextlib.contextmanager
    def local_gradients():
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)

    return model.loss, local_gradients
