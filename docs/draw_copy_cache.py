# SPDX-License-Identifier: Apache-2.0
"""Draws docs/copy_cache.svg: which bytes a call of copy_cache copies. `python docs/draw_copy_cache.py`."""

from pathlib import Path

PICTURE = Path(__file__).parent / "copy_cache.svg"

TENSORS = 3
SRC_ROWS, DST_ROWS, SRC_BATCH_INDEX, DST_BATCH_INDEX = 2, 4, 1, 2
OFFSET, SIZE, ROW = 50, 90, 190  # of a row, in pixels as in bytes
LEFT, GAP, HEIGHT = 140, 26, 20  # of the first tensor, between tensors, of a row
SRC_TOP, DST_TOP = 62, 166
WIDTH, BOTTOM = LEFT + TENSORS * (ROW + GAP), DST_TOP + DST_ROWS * HEIGHT + 42

# Colours for light and dark pages.
STYLE = """
text { font: 12px sans-serif; fill: #24292f }
.name { font: 13px monospace; text-anchor: middle }
.label { text-anchor: end }
.row { fill: #f6f8fa; stroke: #8c959f }
.slice { fill: #54aeff; stroke: #0969da }
.line { stroke: #24292f; fill: none }
.arrow { stroke: #0969da; stroke-width: 2; marker-end: url(#head) }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .row { fill: #21262d; stroke: #6e7681 } .line { stroke: #e6edf3 }
}
"""


def tensor(left: int, top: int, rows: int, batch_index: int) -> list[str]:
    """One tensor: its rows, one below the other, with the slice of one row marked."""
    lines = [
        f'<rect class="row" x="{left}" y="{top + r * HEIGHT}" width="{ROW}" height="{HEIGHT}"/>' for r in range(rows)
    ]
    slice_top = top + batch_index * HEIGHT
    return [*lines, f'<rect class="slice" x="{left + OFFSET}" y="{slice_top}" width="{SIZE}" height="{HEIGHT}"/>']


def text(x: int, y: int, words: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"' + (f' class="{kind}"' if kind else "") + f">{words}</text>"


def bracket(first: int, last: int, words: str) -> list[str]:
    """A dimension above the first tensor of src, from one byte of a row to another."""
    y = SRC_TOP - 12
    path = f'<path class="line" d="M{LEFT + first} {y + 4}v-8m0 4H{LEFT + last}m0-4v8"/>'
    return [path, text(LEFT + (first + last) // 2, y - 8, words, "name")]


def save(picture: Path, width: int, height: int, style: str, lines: list[str]) -> None:
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">\n'
        f"<style>{style}</style>\n"
        '<marker id="head" markerWidth="6" markerHeight="6" refX="3" refY="3" orient="auto">'
        '<path d="M0 0L6 3L0 6z" fill="#0969da"/></marker>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def main() -> None:
    lines = [*bracket(0, OFFSET, "offset"), *bracket(OFFSET, OFFSET + SIZE, "size")]
    for index in range(TENSORS):
        left = LEFT + index * (ROW + GAP)
        middle = left + OFFSET + SIZE // 2
        lines += tensor(left, SRC_TOP, SRC_ROWS, SRC_BATCH_INDEX)
        lines += tensor(left, DST_TOP, DST_ROWS, DST_BATCH_INDEX)
        start, end = SRC_TOP + (SRC_BATCH_INDEX + 1) * HEIGHT + 2, DST_TOP + DST_BATCH_INDEX * HEIGHT - 8
        lines.append(f'<path class="arrow" d="M{middle} {start}V{end}"/>')
        lines.append(text(left + ROW - 22, SRC_TOP + SRC_ROWS * HEIGHT + 16, f"src[{index}]", "name"))
        lines.append(text(left + ROW - 22, DST_TOP + DST_ROWS * HEIGHT + 16, f"dst[{index}]", "name"))
    for name, top, rows, chosen in (
        ("src_batch_index", SRC_TOP, SRC_ROWS, SRC_BATCH_INDEX),
        ("dst_batch_index", DST_TOP, DST_ROWS, DST_BATCH_INDEX),
    ):
        for row in range(rows):
            words = f"{name} = {row}" if row == chosen else str(row)
            lines.append(text(LEFT - 8, top + row * HEIGHT + 14, words, "label"))
    lines.append(
        text(LEFT, BOTTOM - 2, "A box is a row: the bytes of a tensor for one batch index. offset and size: bytes.")
    )
    save(PICTURE, WIDTH, BOTTOM + 8, STYLE, lines)


if __name__ == "__main__":
    main()
