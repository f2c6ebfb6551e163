"""A GPU that is none: tensors with a device of their own, whose work the CPU does.

What the program asks of a device that is no CPU (which tensors are where, what is copied, which kinds of numbers) can
so be run, and compared with the CPU, on a machine without a GPU. It has no float64, as Apple's has none. torch has it
as its "privateuseone" device from `become_available` on, for the whole process: use it in one of its own.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "emulated"
_library = torch.library.Library("aten", "IMPL", "PrivateUse1")  # what it holds is there for as long as it is
DEVICE = torch.device("privateuseone", 0)


class Module:
    """What torch looks for under torch.privateuseone."""

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class OnDevice(torch.Tensor):
    """A tensor on the device. here: its numbers, a tensor of the CPU."""

    @staticmethod
    def __new__(cls, here):
        assert here.dtype != torch.float64, "a float64 tensor on the device"
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return work(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """In which tensors can be made on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return work(function, args, kwargs or {})


def work(function, args, kwargs):
    """Do on the CPU what is asked of either."""
    asked = kwargs.get("device")
    on_device = any(isinstance(each, OnDevice) for each in torch.utils._pytree.tree_leaves((args, kwargs)))
    if asked is not None:
        on_device = torch.device(asked).type == DEVICE.type
        kwargs = kwargs | {"device": torch.device("cpu"), "pin_memory": None} if on_device else kwargs
    unwrapped = tree_map_only(OnDevice, lambda each: each.here, (args, kwargs))
    found = function(*unwrapped[0], **unwrapped[1])
    if not on_device:
        return found
    found = tree_map_only(torch.Tensor, OnDevice, found)
    return return_and_correct_aliasing(function, args, kwargs, found)


def become_available() -> torch.device:
    """Let torch know the device; the device."""
    _setup_privateuseone_for_python_backend(NAME, Module())
    # `torch.tensor(..., device=...)` asks the device itself for these two.
    _library.impl("empty_strided", lambda *args, **kwargs: work(torch.ops.aten.empty_strided.default, args, kwargs))
    _library.impl("copy_", lambda *args: work(torch.ops.aten.copy_.default, args, {}))
    return DEVICE
