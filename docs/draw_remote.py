# SPDX-License-Identifier: Apache-2.0
"""Draws docs/remote.svg: who talks to whom in a pull. `python docs/draw_remote.py`."""

from pathlib import Path

from draw_copy_cache import STYLE, save, text

PICTURE = Path(__file__).parent / "remote.svg"
WIDTH, HEIGHT = 784, 300
BOX, LEFT, RIGHT, TOP = 232, 20, 532, 46  # the width of a process, its left edges and its top edge

# From y, the words above the arrow, and whether it goes to the right.
MESSAGES = [
    (96, "control connection: acquire CacheKey(1, 7)", True),
    (136, "address, row, element type; the memory stays until released", False),
    (196, "NIXL: READ, one descriptor for each contiguous range", False),
    (256, "control connection: release, all tensors pulled", True),
]


def process(left: int, name: str, lines: list[str]) -> list[str]:
    drawn = [f'<rect class="row" x="{left}" y="{TOP}" width="{BOX}" height="{HEIGHT - TOP - 14}"/>']
    drawn.append(text(left + BOX // 2, TOP - 12, name, "name"))
    return [*drawn, *(text(left + 12, TOP + 26 + 40 * number, line) for number, line in enumerate(lines))]


def main() -> None:
    lines = process(
        LEFT,
        "decoder, cluster 2",
        ["link_clusters", "pull_cache(CacheKey(1, 7), cache)", "checks both caches", "", "copy_cache into the batch"],
    )
    lines += process(
        RIGHT,
        "prompt process, cluster 1",
        ["listen_ip_info", "finds the cache, exports it", "", "nothing, or NPU to a pinned buffer", "removes the key"],
    )
    begin, end = LEFT + BOX + 6, RIGHT - 10
    for y, words, rightwards in MESSAGES:
        path = f"M{begin} {y}H{end}" if rightwards else f"M{RIGHT - 6} {y}H{LEFT + BOX + 10}"
        lines.append(f'<path class="arrow" d="{path}"/>')
        half = len(words) // 2 + (words[len(words) // 2 :].find(" ") if len(words) > 44 else len(words))
        lines.append(text((begin + end) // 2, y - (18 if len(words) > 44 else 6), words[:half].strip(), "middle"))
        if len(words) > 44:
            lines.append(text((begin + end) // 2, y - 5, words[half:].strip(), "middle"))
    save(PICTURE, WIDTH, HEIGHT, f"{STYLE}.middle {{ text-anchor: middle }}\n", lines)


if __name__ == "__main__":
    main()
