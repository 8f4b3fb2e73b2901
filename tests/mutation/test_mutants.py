# SPDX-License-Identifier: Apache-2.0
"""Every mutant applies to the code as it is. `make mutate`, which takes hours, shows whether a test finds it."""

import pytest
from mutate import SUITES, mutate
from utils import ROOT

TABLES = [pytest.param(file, codes, id=file) for table, *_ in SUITES.values() for file, codes in table.items()]


@pytest.mark.parametrize(("file", "codes"), TABLES)
def test_each_mutant_applies(file: str, codes: dict[str, list[str]]) -> None:
    text = (ROOT / file).read_text()
    for old, replacements in codes.items():
        for new in replacements:
            assert mutate(text, old, new) != text, old
