"""A pretended device: its tensors say that they are on `gpu:0`, and the CPU computes with them.

As on every GPU, an operator on tensors of two devices fails. As on Apple's GPUs, float64 fails. Each wait of the host
for the device is counted by the line of ecgbyte that causes it, each copy to the device, and each linear layer in
float32.

PyTorch cannot unregister a device, so only a process of its own may import this module.
"""

import sys
from collections import Counter
from contextlib import nullcontext

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "gpu:0"
aten = torch.ops.aten
waits, copies, full_products = Counter(), Counter(), Counter()

# the host must know a value or a shape
WAITING = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default),
    *(aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.bincount.default),
    aten.repeat_interleave.Tensor,
}
INDEXING = {
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default),
    *(aten._index_put_impl_.default, aten._unsafe_index_put.default),
}
COPYING = {aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default, aten.set_.source_Tensor}
LINEAR = {aten.mm.default, aten.addmm.default}
PRODUCTS = LINEAR | {aten.bmm.default, aten.baddbmm.default}


class Module:
    """What PyTorch asks of a device's module."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = _get_device_index = staticmethod(lambda *_, **__: 0)
    manual_seed = manual_seed_all = set_device = synchronize = empty_cache = staticmethod(lambda *_: None)
    get_rng_state = staticmethod(lambda *_: torch.zeros(1, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda *_: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    device = staticmethod(lambda *_: nullcontext())


backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Module())
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) is made on the CPU, then copied


def lowering(product):
    """Return what autocast makes of a matrix product: it computes in the type of autocast."""

    def lowered(*args, **kwargs):
        kind = torch.get_autocast_dtype("gpu")

        def lower(value):
            floats = isinstance(value, Pretended) and value.is_floating_point()
            return value.to(kind) if floats else value

        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return product(*tree_map(lower, args), **tree_map(lower, kwargs))

    return lowered


AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_all, _aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_all.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _product in (aten.linear, aten.matmul, *(operator.overloadpacket for operator in PRODUCTS)):
    _aten.impl(_product.default, lowering(_product), "AutocastPrivateUse1")
_aten.impl(
    aten.scaled_dot_product_attention.default,
    lowering(aten.scaled_dot_product_attention),
    "AutocastPrivateUse1",
)


class Pretended(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        if inner.dtype == torch.float64:
            raise TypeError(f"Cannot convert a tensor to float64 dtype: {DEVICE} has none, at {line()}")
        self.inner = inner

    def __repr__(self):
        return f"Pretended({self.inner})"

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def numpy(self, **_):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})


class Watch(TorchDispatchMode):
    """Send every operator through `dispatch`, also those that make tensors on the device."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return dispatch(operator, args, kwargs or {})


def line():
    """Return the innermost line of ecgbyte that is running."""
    frame = sys._getframe()
    while frame:
        _, found, file = frame.f_code.co_filename.partition("ecgbyte_cli/")
        if found:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def dispatch(operator, args, kwargs):
    """Run an operator on the CPU, if its tensors may meet, and count what it costs."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    device = kwargs.get("device")
    stays = bool(there) if device is None else torch.device(device).type == "gpu"
    if not there and not stays:
        return operator(*args, **kwargs)
    # as on a GPU, scalars and indices of the CPU are taken over
    if there and operator not in COPYING | INDEXING and any(tensor.dim() for tensor in here):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {operator} got {DEVICE} and cpu, at {line()}"
        )
    from_device = operator is aten.copy_.default and not isinstance(args[0], Pretended)
    count(operator, args, bool(here), from_device or not stays)
    inner, named = tree_map(unwrap, (args, kwargs))
    named.pop("pin_memory", None)
    if device is not None:
        named["device"] = torch.device("cpu")
    result = operator(*inner, **named)
    if from_device:
        return args[0]
    if not stays:
        return result
    return return_and_correct_aliasing(operator, args, kwargs, tree_map(wrap, result))


def count(operator, args, mixed, leaves):
    """Count an operator as a wait, a copy or a product outside autocast, where it is one."""
    indices = args[1] if operator in INDEXING and len(args) > 1 else ()
    masked = any(isinstance(each, Pretended) and each.dtype == torch.bool for each in indices)
    if leaves or masked or operator in WAITING:
        waits[line()] += 1
    elif mixed and (operator in INDEXING or operator in COPYING):
        copies[line()] += 1
    if operator in LINEAR and args[-1].dtype == torch.float32:
        full_products[line()] += 1


def unwrap(value):
    return value.inner if isinstance(value, Pretended) else value


def wrap(value):
    return Pretended(value) if isinstance(value, torch.Tensor) else value


def reset():
    """Begin to count again."""
    for counter in (waits, copies, full_products):
        counter.clear()
