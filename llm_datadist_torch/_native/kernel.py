# SPDX-License-Identifier: Apache-2.0
"""The vector-core kernels that copy within an NPU. Imported only where triton-ascend is installed.

Note [The tables of the kernel]
The work of a launch is every piece of every base. All numbers are int64; offsets and lengths count elements of the form.

    share of a program   base, piece, count      where it begins, and how many pieces it copies
    base                 dst, src, begin, end    added to dst_base and src_base; its pieces are [begin, end)
    piece                dst, src, length        added to those of the base; at most TILE

A program copies the pieces of a base one after the other, then those of the next base. The shares of all programs make
up the work. No piece reads what another one of the launch writes.

Note [Tables on the device]
`copy_rows` reads the rows of `copies` on the device, when it runs. For each place of the caches it has a row of int64:

    dst, its steps     bytes after dst_base; and for each: dst_batch_index, row of copies, byte of the offset
    src, its steps     the same after src_base
    limits             rows and bytes of a row of dst, rows and bytes of a row of src

The steps make it copy between caches (a row of copies: 0, a byte of the offset: 1), and to and from a buffer with a slot
for each row of copies. What is not inside the limits is not copied, and counted in `skipped`. Programs share the work,
which is each tile of each row of copies at each place, by numbers: the sizes are not known.

Note [The loop of the kernel]
The compiler makes of these loops what a copy should be: DMA from and to global memory, through two buffers in turn, so
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
def copy_tile(dst, src, length, TILE: tl.constexpr):
    lanes = tl.arange(0, TILE)
    inside = lanes < length
    tl.store(dst + lanes, tl.load(src + lanes, mask=inside, care_padding=False), mask=inside)


@triton.jit
def copy_pieces(dst_base, src_base, shares, bases, pieces, TILE: tl.constexpr):
    share = shares + tl.program_id(0).to(tl.int64) * 3
    base = tl.load(share)
    piece = tl.load(share + 1)
    for _ in range(tl.load(share + 2)):
        place = bases + base * 4
        span = pieces + piece * 3
        dst = dst_base + (tl.load(place) + tl.load(span))
        src = src_base + (tl.load(place + 1) + tl.load(span + 1))
        copy_tile(dst, src, tl.load(span + 2), TILE)
        piece += 1
        if piece == tl.load(place + 3):
            base += 1
            piece = tl.load(bases + base * 4 + 2)


@triton.jit
def copy_rows(dst_base, src_base, places, copies, skipped, rows, columns, tiles, work, TILE: tl.constexpr):
    share = (work + tl.num_programs(0) - 1) // tl.num_programs(0)
    begin = tl.program_id(0) * share
    outside = begin * 0
    for item in range(begin, tl.minimum(begin + share, work)):
        at = item % tiles * TILE
        row = item // tiles % rows
        place = places + item // tiles // rows * 12
        copy = copies + row * columns
        to = tl.load(copy)
        of = tl.load(copy + 1)
        dst_offset = tl.load(copy + 2)
        src_offset = tl.load(copy + tl.where(columns == 5, 4, 2))
        dst_rest = tl.load(place + 9) - dst_offset
        src_rest = tl.load(place + 11) - src_offset
        size = tl.load(copy + 3)
        size = tl.where(size == -1, src_rest, size)
        inside = (to >= 0) & (to < tl.load(place + 8)) & (of >= 0) & (of < tl.load(place + 10))
        inside = inside & (dst_offset >= 0) & (src_offset >= 0) & (size > 0) & (size <= dst_rest) & (size <= src_rest)
        dst = tl.load(place) + to * tl.load(place + 1) + row * tl.load(place + 2) + dst_offset * tl.load(place + 3)
        src = tl.load(place + 4) + of * tl.load(place + 5) + row * tl.load(place + 6) + src_offset * tl.load(place + 7)
        copy_tile(dst_base + dst + at, src_base + src + at, tl.where(inside, size - at, 0), TILE)
        outside += tl.where(inside | (item >= tiles * rows) | (at > 0), 0, 1)  # counted at the first place
    tl.atomic_add(skipped, outside.to(tl.int32))


def compile_for(chip: str, form: str | None) -> bytes:
    """The binary of `copy_pieces` in a form, or that of `copy_rows`, for a chip such as Ascend910B3.

    Takes seconds; triton keeps it on disk.
    """
    elements, size = ("*i8", 1) if form is None else (f"*{form}", FORMS[form])
    signature = {"dst_base": elements, "src_base": elements}
    if form is None:
        signature |= {"places": "*i64", "copies": "*i64", "skipped": "*i32"}
        signature |= dict.fromkeys(("rows", "columns", "tiles", "work"), "i64")
    else:
        signature |= {"shares": "*i64", "bases": "*i64", "pieces": "*i64"}
    function = copy_rows if form is None else copy_pieces
    source = triton.compiler.ASTSource(function, signature, {"TILE": TILE_BYTES // size})
    target = triton.backends.compiler.GPUTarget("npu", chip, 0)
    options = {"compile_on_910_95": chip.startswith("Ascend950")}
    binary: bytes = triton.compile(source, target=target, options=options).asm["npubin"]
    return binary
