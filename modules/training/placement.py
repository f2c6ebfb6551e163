"""Which of many runs is trained where, and how many at a time.

A place is a GPU, or all of the machine's cores. Runs begin in their order, each on the place that has the fewest of
those that it fits beside, by memory. On a CPU what a run needs is estimated from its sizes. On a GPU, where it depends
on torch's kernels, one run of each size takes a few steps first: half a minute, against hours of a GPU that is
half empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modules.config import Config
from modules.models import count_parameters
from modules.system.processes import available_cores
from modules.training.batches import pieces_of_a_batch
from modules.training.devices import gpus_here, pick_device
from modules.training.memory import GIB, STATE_BYTES, WEIGHT_BYTES, available_memory
from modules.training.parallel import Processes
from modules.training.trial import try_out

MOST_ON_A_GPU = 8  # beyond that they wait for each other: small runs, too, take turns at the GPU's scheduler
# Of a process on a CPU beside its model: Python, torch, W&B, the picture of the loss. A run of 30,080 parameters has
# 0.35 GiB before its first validation.
PROCESS_BYTES = 0.6 * GIB
ACTIVATION_BYTES = 80  # for each token, layer and number of its width; measured 64 to 77
LOGITS_BYTES = 0.25 * GIB  # a chunk of them, and what is made of it
CONTEXT_BYTES = 0.6 * GIB  # of a GPU's memory that CUDA itself takes for each process
MARGIN = 1.2  # for validations, and what torch's allocator cannot use

HERE = Processes(0, 1, torch.device("cpu"))
_measured: dict[tuple, float] = {}  # bytes by the size of a run: once in a process, which may train again and again


@dataclass(frozen=True)
class Place:
    """Where runs are trained. device: what `-d` says to them, None for nothing. room: bytes of memory. most: runs at a
    time."""

    device: str | None
    room: float
    most: int


@dataclass(frozen=True)
class Plan:
    """places: for the runs. needs: bytes of each run, by its name. at_a_time: the most runs that there will be at a
    time. line: what was chosen and why, for the user."""

    places: tuple[Place, ...]
    needs: dict[str, float]
    at_a_time: int
    line: str


def place_for(needed: float, places: Sequence[Place], taken: Sequence[tuple[Place, float]]) -> Place | None:
    """The place for a run that needs so many bytes, beside those that have taken theirs (place, bytes); None where it
    has to wait. What fits nowhere gets a place of its own."""
    beside = {place: [needs for where, needs in taken if where == place] for place in places}
    free = [
        place
        for place, needs in beside.items()
        if not needs or (len(needs) < place.most and sum(needs) + needed <= place.room)
    ]
    return min(free, key=lambda place: (len(beside[place]), sum(beside[place])), default=None)


def together(needed: float, places: Sequence[Place]) -> int:
    """How many runs that need so many bytes each are trained at a time."""
    taken: list[tuple[Place, float]] = []
    while (place := place_for(needed, places, taken)) is not None:
        taken.append((place, needed))
    return len(taken)


def plan_for(runs: Sequence[Config], device_name: str | None, jobs: int | None) -> Plan:
    """Where to train these runs.

    jobs: at most so many at a time; None for as many as this machine is good for: on a CPU one a core, on GPUs up to
    MOST_ON_A_GPU on each where a core drives each; fewer where memory is short. On a CPU a number is obeyed.
    Raises UserError where there is no such device, or a run's config and data do not fit.
    """
    cores, gpus = available_cores(), gpus_here(device_name)
    if gpus:
        most = jobs or max(1, min(MOST_ON_A_GPU, cores // len(gpus)))
        places = tuple(Place(name, free, most) for name, free in gpus)
        alone = max(jobs or len(runs), 1) <= len(gpus) or most == 1
        needs = {run.name: 0.0 for run in runs} if alone else measured_needs(runs, places[0].device)
        why = f"{len(gpus)} GPU(s) with {_gib(min(free for _, free in gpus))} free"
        measured = "measured"
    elif pick_device(device_name).type == "cpu":
        room = float("inf") if jobs else available_memory()
        places, why = (Place(device_name, room, jobs or cores),), f"{cores} core(s), {_gib(available_memory())} free"
        needs, measured, alone = {run.name: estimated_need(run) for run in runs}, "estimated", False
    else:  # Apple's GPU, which does not say what a run takes of the memory that it shares with the CPU
        places, why = (Place(device_name, float("inf"), jobs or 1),), f"one {pick_device(device_name)}"
        needs, measured, alone = {run.name: 0.0 for run in runs}, "", True
    at_a_time = min(len(runs), together(min(needs.values(), default=0.0), places), jobs or len(runs))
    each = f", up to {_gib(max(needs.values(), default=0.0))} a run ({measured})" if not alone else ""
    return Plan(places, needs, at_a_time, f"{len(runs)} runs, {at_a_time} at a time: {why}{each}")


def estimated_need(config: Config) -> float:
    """Bytes that the process of a run takes on a CPU, for all that is known before it: weights, gradients, moments, the
    copy of a state that is being written, and the activations of a piece of a batch."""
    params, model = config.training_params, config.model_params
    pieces = pieces_of_a_batch(config, HERE)
    tokens = -(-params.batch_size // pieces) * model.context
    layers = 1 if params.checkpoint_activations else model.n_layers
    parameters = count_parameters(config.trained_model, **config.model_arguments)
    copied = STATE_BYTES - WEIGHT_BYTES  # gradients are not in a state
    return (
        PROCESS_BYTES
        + (STATE_BYTES + copied) * parameters
        + ACTIVATION_BYTES * tokens * layers * model.embed_dim
        + LOGITS_BYTES
    )


def measured_needs(runs: Sequence[Config], device_name: str | None) -> dict[str, float]:
    """Bytes of a GPU's memory that each run takes, from a few steps of one of each size."""
    needs = {}
    for run in runs:
        size = size_of(run)
        if size not in _measured:
            _measured[size] = MARGIN * (try_out(run, device_name).bytes + CONTEXT_BYTES)
        needs[run.name] = _measured[size]
    return needs


def size_of(config: Config) -> tuple:
    """What is equal of runs that take the same memory and time a step: seeds, data and orders of reading are not in
    it."""
    params = config.training_params
    sizes = (params.batch_size, params.aggregate, params.precision, params.compile, params.checkpoint_activations)
    return config.trained_model, str(config.model_arguments), *sizes


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
