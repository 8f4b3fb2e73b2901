# SPDX-License-Identifier: Apache-2.0
"""Makes graphs of torch.compile and torch.export copy the right bytes.

Two things that torch does with any op that writes to its arguments go wrong, and are mended here for ours alone:

- Functionalization gives a graph the whole tensor that a view belongs to, and makes the view anew from its distance to
  the start of the storage. That is wrong if the tensor is itself a part of its storage (pytorch issue 198068), and, in
  Inductor, if sizes are dynamic (pytorch issue 198095). A copy into views is therefore written into the graph as an op
  that takes whole tensors, and distances from the start of these.
- Inductor computes a value where it is used. If the value is computed from a cache, that has to happen before the copy.
"""

import functools
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_ops = torch.ops.llm_datadist
_VIEWS_OP = {
    _ops.copy_cache.default: _ops._copy_cache_views.default,
    _ops.copy_cache_batch.default: _ops._copy_cache_batch_views.default,
}


def register() -> None:
    """Registers what torch's compilers need to know of the ops. Call it once, after the ops are loaded."""
    for op in _VIEWS_OP:
        torch.library.register_torch_dispatch(op.name(), FunctionalTensorMode, _functionalize)
    for op in (*_VIEWS_OP, *_VIEWS_OP.values()):
        torch.library.register_torch_dispatch(op.name(), FakeTensorMode, _trace)
    # Graphs that another version of this package has compiled are on disk. They may be wrong.
    config = torch.compiler.config
    tag = f"llm_datadist_torch-{version('llm_datadist_torch')}"
    config.cache_key_tag = ",".join(filter(None, (config.cache_key_tag, tag)))


def _functionalize(
    mode: TorchDispatchMode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    dst, *others = args
    whole: dict[int, Tensor] = {}
    views: list[int] = []
    for tensor in dst:
        base = (tensor._inference_mode_base if torch.is_inference_mode_enabled() else tensor._base)  # fmt: skip
        owner = tensor if base is None else base
        index = list(whole).index(id(owner)) if id(owner) in whole else len(whole)
        whole[id(owner)] = owner
        if base is None:
            views += (index, -1)
        else:
            offset = _first_byte(tensor) - _first_byte(base)
            views += (index, tensor.dim(), offset, *tensor.size(), *tensor.stride())
    if len(views) > 2 * len(dst):
        op, args, kwargs = _VIEWS_OP[op], (list(whole.values()), *others), {**kwargs, "views": views}
    return mode.__torch_dispatch__(op, types, args, kwargs)


def _first_byte(tensor: Tensor) -> int:
    return tensor.storage_offset() * tensor.element_size()


def _trace(mode: TorchDispatchMode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Inductor traces a graph before it lowers it. Importing it takes seconds, which only those who use it should wait.
    if "torch._inductor.lowering" in sys.modules:
        _register_lowerings()
    return mode.__torch_dispatch__(op, types, args, kwargs)


@functools.cache
def _register_lowerings() -> None:
    from torch._inductor import lowering
    from torch._inductor.virtualized import V

    def lower(op: OpOverload) -> Callable[..., Any]:
        fallback = lowering.fallback_handler(op)

        def copy(dst: list[Any], *args: Any, **kwargs: Any) -> Any:
            for tensor in dst:
                tensor.realize()
                V.graph.mark_buffer_mutated(tensor.get_name())  # computes what is still to be computed from it
            return fallback(dst, *args, **kwargs)

        return copy

    for op in (*_VIEWS_OP, *_VIEWS_OP.values()):
        lowering.add_needs_realized_inputs(op)
        lowering.register_lowering(op, type_promotion_kind=None)(lower(op))
