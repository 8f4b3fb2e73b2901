# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the README run, and print what the block after them says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def test_readme() -> None:
    text = README.read_text()
    samples = BLOCKS.findall(text)
    assert len(samples) == text.count("```python") == 2
    names: dict = {}
    for code, printed in samples:
        output = StringIO()
        with redirect_stdout(output):
            exec(code, names)
        assert output.getvalue() == printed
