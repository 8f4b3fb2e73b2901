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
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as Mode
from torch.utils.weak import WeakIdKeyDictionary

Number = int | torch.SymInt

_ops = torch.ops.llm_datadist
_VIEWS_OP = {
    _ops.copy_cache.default: _ops._copy_cache_views.default,
    _ops.copy_cache_batch.default: _ops._copy_cache_batch_views.default,
}

# The whole tensors of views that autograd does not know as such: those of another dtype, and detached ones.
_whole_of: WeakIdKeyDictionary = WeakIdKeyDictionary()


def register() -> None:
    """Registers what torch's compilers need to know of the ops. Call it once, after the ops are loaded."""
    for op in (torch.ops.aten.view.dtype, torch.ops.aten.detach.default):
        torch.library.register_torch_dispatch(op.name(), FunctionalTensorMode, _note_view)
    for op in _VIEWS_OP:
        torch.library.register_torch_dispatch(op.name(), FunctionalTensorMode, _functionalize)
    for op in (*_VIEWS_OP, *_VIEWS_OP.values()):
        torch.library.register_torch_dispatch(op.name(), FakeTensorMode, _trace)
    # Graphs that another version of this package has compiled are on disk. They may be wrong.
    config = torch.compiler.config
    tag = f"llm_datadist_torch-{version('llm_datadist_torch')}"
    config.cache_key_tag = ",".join(filter(None, (config.cache_key_tag, tag)))


def _note_view(mode: Mode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    view = mode.__torch_dispatch__(op, types, args, kwargs)
    if isinstance(view, FunctionalTensor) and view is not args[0]:
        _whole_of[view] = _whole(args[0])
    return view


def _whole(tensor: Tensor) -> Tensor:
    # Autograd knows no views in inference mode.
    base = getattr(tensor, "_inference_mode_base", None) if torch.is_inference_mode_enabled() else tensor._base
    base = tensor if base is None else base
    whole: Tensor = _whole_of.get(base, base)
    return whole


def _functionalize(mode: Mode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    dst, *others = args
    tensors: dict[int, Tensor] = {}
    views: list[Number] = []
    for tensor in dst:
        whole = _whole(tensor)
        tensors[id(whole)] = whole
        index = list(tensors).index(id(whole))
        if whole is tensor:
            views += (index, -1)
        else:
            with disable_proxy_modes_tracing():
                offset = _first_byte(tensor) - _first_byte(whole)
            views += (index, tensor.dim(), _from_sizes(offset), *tensor.size(), *tensor.stride())
    if len(views) > 2 * len(dst):
        op, args, kwargs = _VIEWS_OP[op], (list(tensors.values()), *others), {**kwargs, "views": views}
    return mode.__torch_dispatch__(op, types, args, kwargs)


def _first_byte(tensor: Tensor) -> Number:
    return tensor.storage_offset() * tensor.element_size()


def _from_sizes(number: Number) -> Number:
    """The number, computed by the graph from its symbols alone.

    Traced as it is, it would be what the view is from the start of its storage when the graph runs, less what the whole
    tensor was from there when it was compiled.
    """
    if not isinstance(number, torch.SymInt):
        return number
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    env = number.node.shape_env
    symbols = {symbol: env.create_symintnode(symbol, hint=None) for symbol in number.node.expr.free_symbols}
    result: Number = sympy_interp(PythonReferenceAnalysis, symbols, number.node.expr)
    return result


def _trace(mode: Mode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
            # AOTInductor of torch 2.7 fails for a keyword argument that is not given, and makes no call.
            return fallback(dst, *args, **{"batch_dim": 0, **kwargs})

        return copy

    for op in (*_VIEWS_OP, *_VIEWS_OP.values()):
        lowering.add_needs_realized_inputs(op)
        lowering.register_lowering(op, type_promotion_kind=None)(lower(op))
