# SPDX-License-Identifier: Apache-2.0
"""The vector-core kernel that copies within an NPU. Imported only where triton-ascend is installed.

Note [The tables of the kernel]
The work of a launch is every piece of every base. All numbers are int64; offsets and lengths count elements of the form.

    share of a program   base, piece, count      where it begins, and how many pieces it copies
    base                 dst, src, begin, end    added to dst_base and src_base; its pieces are [begin, end)
    piece                dst, src, length        added to those of the base; at most TILE

A program copies the pieces of a base one after the other, then those of the next base. The shares of all programs make
up the work. No piece reads what another one of the launch writes.

Note [The loop of the kernel]
The compiler makes of this loop what a copy should be: DMA from and to global memory, through two buffers in turn, so
that a load runs while the previous piece is stored. It does so only because of the following.
- dst_base and src_base are two arguments. Of addresses made from integers, the compiler assumes that a load may read
  what an earlier store has written, and waits for each store.
- care_padding=False. Otherwise it fills each buffer with zeros first, and waits for that.
"""

import triton
import triton.language as tl

TILE_BYTES = 32_768
"""The longest piece. Two buffers take a third of the unified buffer of an A2 or A3 (192 KiB)."""

FORMS = {"i32": 4, "i8": 1}
"""Types of the elements, with their sizes: DMA of words where all addresses and lengths are multiples of 4, or of bytes."""


@triton.jit
def copy_pieces(dst_base, src_base, shares, bases, pieces, TILE: tl.constexpr):
    share = shares + tl.program_id(0).to(tl.int64) * 3
    base = tl.load(share)
    piece = tl.load(share + 1)
    lanes = tl.arange(0, TILE)
    for _ in range(tl.load(share + 2)):
        place = bases + base * 4
        span = pieces + piece * 3
        dst = dst_base + (tl.load(place) + tl.load(span))
        src = src_base + (tl.load(place + 1) + tl.load(span + 1))
        inside = lanes < tl.load(span + 2)
        tl.store(dst + lanes, tl.load(src + lanes, mask=inside, care_padding=False), mask=inside)
        piece += 1
        if piece == tl.load(place + 3):
            base += 1
            piece = tl.load(bases + base * 4 + 2)


def compile_for(chip: str, form: str) -> bytes:
    """The binary of `copy_pieces` for a chip, such as Ascend910B3. Takes seconds; triton keeps it on disk."""
    elements = f"*{form}"
    signature = {"dst_base": elements, "src_base": elements, "shares": "*i64", "bases": "*i64", "pieces": "*i64"}
    source = triton.compiler.ASTSource(copy_pieces, signature, {"TILE": TILE_BYTES // FORMS[form]})
    target = triton.backends.compiler.GPUTarget("npu", chip, 0)
    options = {"compile_on_910_95": chip.startswith("Ascend950")}
    binary: bytes = triton.compile(source, target=target, options=options).asm["npubin"]
    return binary
