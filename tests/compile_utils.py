# SPDX-License-Identifier: Apache-2.0
"""Helpers of the torch.compile tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from utils import assert_same_bytes

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def check_compiled(function: Callable[..., Any], *args: Any, backend: str = "inductor") -> str:
    """Runs a function eagerly and compiled, on copies of the same arguments, and compares all tensors afterwards.

    Views of one storage are views of one storage in each copy too.

    Returns:
        The code that Inductor generated, if it is the backend.
    """
    eager_args, compiled_args = deepcopy(args), deepcopy(args)
    eager_result = function(*eager_args)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    code: list[str] = []
    if backend == "inductor":
        result, code = run_and_get_code(compiled, *compiled_args)
    else:
        result = compiled(*compiled_args)
    tensors = [torch.utils._pytree.tree_leaves(tree) for tree in ((eager_args, eager_result), (compiled_args, result))]
    eager, actual = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in tensors)
    assert_same_bytes(actual, eager)
    return "\n".join(code)


def assert_no_cache_is_cloned(code: str) -> None:
    """Checks that the generated wrapper makes no tensor: these functions only copy between their arguments."""
    call = re.search(r"^( *)def call\(.*\n(?:\1 +.*\n|\n)+", code, re.MULTILINE)
    assert call is not None
    wrapper = call.group()
    assert "torch.ops.llm_datadist.copy_cache" in wrapper
    for made in ("empty_strided", "clone", "copy_("):
        assert made not in wrapper, f"{made} in the generated code:\n{wrapper}"
