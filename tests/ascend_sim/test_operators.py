# SPDX-License-Identifier: Apache-2.0
"""Each operator against torch on the CPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401  registers torch.npu
from torch import Tensor
from torch.nn import functional

import ascend_sim

LIBRARY = Path(__file__).with_name("build") / "libopapi.so"


def inputs(device: str) -> dict[str, Tensor]:
    """Views, each with an offset of its own and with strides that are not those of a contiguous tensor."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 7, 9, generator=generator).to(device)
    counts = torch.randint(1, 9, (7, 9), generator=generator).to(device)
    heads = torch.randn(3, 2, 11, 6, 8, generator=generator).to(device)
    visible = torch.randn(5, 13, generator=generator) < 1
    return {
        "x": values[0, 1:6, 2:],
        "y": values.transpose(1, 2)[1, :7, 1:6].t(),
        "n": counts[1:6, 2:],
        "m": counts.t()[:7, 2:].t(),
        "b": visible.to(device)[:, 3:10],
        "rows": torch.tensor([7, 4, 7, 0, 7, 2]).to(device)[1::2],
        "q": heads[0, :, 1:6].transpose(1, 2),
        "k": heads[1].transpose(1, 2),
        "v": heads[2].transpose(1, 2),
        "mask": visible.to(device)[:, 2:],
    }


Expression = Callable[..., Tensor | tuple[Tensor, ...]]

# What torch_npu computes with each operator.
EXPRESSIONS: dict[str, Expression] = {
    "Abs": lambda x, **_: x.abs(),
    "Add": lambda x, y, **_: torch.add(x, y, alpha=2),
    "Adds": lambda x, **_: x + 1.5,
    "All": lambda b, **_: b.all(1),
    "Any": lambda b, **_: b.any(0, keepdim=True),
    "Arange": lambda x, **_: torch.arange(1, 9, 2, device=x.device),
    "ArgMax": lambda x, **_: x.argmax(1),
    "BatchMatMul": lambda q, k, **_: torch.bmm(q[0], k[0].transpose(1, 2)),
    "BitwiseAndScalar": lambda n, **_: n & 3,
    "BitwiseAndTensor": lambda n, m, **_: n & m,
    "BitwiseNot": lambda n, **_: ~n,
    "BitwiseOrScalar": lambda n, **_: n | 3,
    "BitwiseOrTensor": lambda n, m, **_: n | m,
    "Cat": lambda x, y, **_: torch.cat([x, y], 1),
    "Ceil": lambda x, **_: x.ceil(),
    "Cos": lambda x, **_: x.cos(),
    "Cumsum": lambda n, **_: n.cumsum(-1),
    "Div": lambda x, y, **_: x / y,
    "Divs": lambda x, **_: x / 3,
    "Embedding": lambda x, rows, **_: functional.embedding(rows, x),
    "EqScalar": lambda n, **_: n == 3,
    "EqTensor": lambda n, m, **_: n == m,
    "Equal": lambda n, m, **_: torch.tensor([torch.equal(n, m), torch.equal(n, n)]),
    "FlashAttentionScore": lambda q, k, v, mask, **_: functional.scaled_dot_product_attention(q, k, v, mask),
    "FloorDivide": lambda n, m, **_: n // m,
    "FloorDivides": lambda n, **_: n // 3,
    "Gather": lambda x, n, **_: x.gather(1, n % 5),
    "GeScalar": lambda n, **_: n >= 3,
    "GeTensor": lambda n, m, **_: n >= m,
    "GtScalar": lambda n, **_: n > 3,
    "GtTensor": lambda n, m, **_: n > m,
    "Index": lambda x, rows, **_: x[:, rows],
    "IndexCopy": lambda x, y, rows, **_: x.index_copy(0, rows, y[:3]),
    "IndexPutImpl": lambda x, y, rows, **_: x.clone().index_put_((rows,), y[:3]),
    "IndexSelect": lambda x, rows, **_: x.index_select(0, rows),
    "InplaceAdd": lambda x, y, **_: x.clone().add_(y, alpha=2),
    "InplaceAdds": lambda x, **_: x.clone().add_(1),
    "InplaceBitwiseAndScalar": lambda n, **_: n.clone().bitwise_and_(3),
    "InplaceBitwiseAndTensor": lambda n, m, **_: n.clone().bitwise_and_(m),
    "InplaceCopy": lambda x, **_: x.t().to(torch.float16).clone(),
    "InplaceCos": lambda x, **_: x.clone().cos_(),
    "InplaceDiv": lambda x, y, **_: x.clone().div_(y),
    "InplaceDivs": lambda x, **_: x.clone().div_(2.5),
    "InplaceFillScalar": lambda x, **_: x.clone().fill_(3),
    "InplaceFillTensor": lambda x, **_: x.clone().fill_(x[0, 0]),
    "InplaceIndexCopy": lambda x, y, rows, **_: x.clone().index_copy_(0, rows, y[:3]),
    "InplaceLogicalNot": lambda b, **_: b.clone().logical_not_(),
    "InplaceMaskedFillScalar": lambda x, b, **_: x.clone().masked_fill_(b, 7),
    "InplaceMul": lambda x, y, **_: x.clone().mul_(y),
    "InplaceMuls": lambda x, **_: x.clone().mul_(2.5),
    "InplaceOne": lambda x, **_: torch.ones(3, 4, device=x.device),
    "InplacePowTensorScalar": lambda x, **_: x.clone().pow_(2),
    "InplaceRsqrt": lambda x, **_: x.abs().rsqrt_(),
    "InplaceSin": lambda x, **_: x.clone().sin_(),
    "InplaceSub": lambda x, y, **_: x.clone().sub_(y, alpha=2),
    "InplaceSubs": lambda x, **_: x.clone().sub_(1),
    "InplaceZero": lambda x, **_: x.clone().zero_(),
    "IsClose": lambda x, y, **_: torch.isclose(x, y, 1.0, 0.1),
    "IsFinite": lambda x, **_: torch.isfinite(x / x.floor_divide(1)),
    "LeScalar": lambda n, **_: n <= 3,
    "LeTensor": lambda n, m, **_: n <= m,
    "LogSoftmax": lambda x, **_: x.log_softmax(0),
    "LogicalAnd": lambda b, n, **_: torch.logical_and(b, n),
    "LogicalNot": lambda n, **_: torch.logical_not(n),
    "LogicalOr": lambda b, n, **_: torch.logical_or(b, n),
    "LtScalar": lambda n, **_: n < 3,
    "LtTensor": lambda n, m, **_: n < m,
    "Matmul": lambda q, k, **_: q @ k.transpose(-1, -2),
    "Max": lambda x, **_: x.max(),
    "MaxDim": lambda x, **_: tuple(x.max(1)),
    "MaskedSelect": lambda x, b, **_: x.masked_select(b),
    "Mean": lambda x, **_: x.mean(-1, keepdim=True),
    "Min": lambda x, **_: x.min(),
    "MinDim": lambda x, **_: tuple(x.min(0)),
    "Mm": lambda x, y, **_: torch.mm(x.contiguous(), y.t().contiguous()),
    "Mul": lambda x, b, **_: x * b,
    "Muls": lambda x, **_: x * 2.5,
    "NeScalar": lambda n, **_: n != 3,
    "NeTensor": lambda n, m, **_: n != m,
    "Neg": lambda x, **_: -x,
    "Nonzero": lambda b, **_: b.nonzero(),
    "NonzeroV2": lambda x, b, **_: x[b],
    "PowScalarTensor": lambda x, **_: 2**x,
    "PowTensorScalar": lambda x, **_: x**2,
    "Reciprocal": lambda x, **_: x.reciprocal(),
    "ReduceSum": lambda n, **_: n.sum(1),
    "RemainderTensorScalar": lambda n, **_: n % 5,
    "RemainderTensorTensor": lambda n, m, **_: n % m,
    "RepeatInterleaveIntWithDim": lambda x, **_: x.repeat_interleave(2, dim=0),
    "Rsqrt": lambda x, **_: x.abs().rsqrt(),
    "SWhere": lambda b, x, y, **_: torch.where(b, x, y),
    "Silu": lambda x, **_: functional.silu(x),
    "Sin": lambda x, **_: x.sin(),
    "Softmax": lambda x, **_: x.softmax(1),
    "Stack": lambda x, y, **_: torch.stack([x, y], 1),
    "Sub": lambda x, y, **_: torch.sub(x, y, alpha=2),
    "Subs": lambda x, **_: x - 1.5,
    "Topk": lambda x, **_: tuple(x.topk(3)),
    "Triu": lambda x, **_: x.triu(1),
}


def check(expression: Expression) -> None:
    """Compares to the bit: it is the same kernel."""
    expected, actual = expression(**inputs("cpu")), expression(**inputs("npu"))
    if isinstance(expected, Tensor):
        expected, actual = (expected,), (actual,)
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_operator(name: str) -> None:
    check(EXPRESSIONS[name])
    assert ascend_sim.call_counts()[f"aclnn{name}"] >= 1


@pytest.mark.parametrize(
    "expression",
    [
        lambda q, k, v, **_: functional.scaled_dot_product_attention(q, k, v),
        lambda q, k, v, **_: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v, **_: functional.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        lambda x, y, **_: x.half() @ y.t().half(),
        lambda x, y, **_: x.bfloat16() * y.bfloat16(),
        lambda x, rows, **_: x.new_zeros(9, 5).index_put_((rows[:, None], rows), x[:3, :3], accumulate=True),
        lambda x, **_: torch.cat([x, x[:0]]) + x[:0].sum(),
        lambda x, b, **_: x.masked_select(b & ~b),
    ],
)
def test_other_ways_to_call_an_operator(expression: Expression) -> None:
    check(expression)


def test_random_numbers_are_those_of_the_seed() -> None:
    torch.manual_seed(5)
    first, second = (torch.randint(3, 9, (1000,), device="npu").cpu() for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(torch.randint(3, 9, (1000,), device="npu").cpu(), first)
    assert not torch.equal(first, second)
    assert first.unique().tolist() == list(range(3, 9))


def test_every_operator_of_the_library_has_a_test() -> None:
    listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], check=True, capture_output=True, text=True)
    symbols = {line.split()[-1] for line in listed.stdout.splitlines()}
    operators = {name for name in symbols if f"{name}GetWorkspaceSize" in symbols}
    # Cast is called by older versions of torch_npu alone, for every conversion.
    assert operators == {f"aclnn{name}" for name in EXPRESSIONS} | {"aclnnInplaceRandom", "aclnnCast"}


def test_tensors_are_printed() -> None:
    x = torch.tensor([[1.5, float("nan")], [2e10, 0]])
    for tensor in (x, x.t(), x == x, x[:1, :0], torch.arange(2000)):
        assert str(tensor.npu()).replace(", device='npu:0'", "") == str(tensor)


@pytest.mark.parametrize(("mode", "selection"), [("0", "not call_that"), ("2", "not call_that and not captured")])
def test_in_the_other_modes_of_the_task_queue(mode: str, selection: str) -> None:
    """Without the tests that set the mode themselves; torch_npu captures nothing in mode 2."""
    files = [__file__, str(Path(__file__).with_name("test_operator_tasks.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not modes and {selection}", *files],
        env={**os.environ, "TASK_QUEUE_ENABLE": mode},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
