# SPDX-License-Identifier: Apache-2.0
"""The examples run as documented, and their own checks can fail. See tests/remote for another."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from utils import load_example

from llm_datadist_torch import copy_tokens

REQUESTS, PREFIX, SUFFIX = 3, 48, 5
Main = Callable[..., str]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prefix_sharing() -> ModuleType:
    return load_example("prefix_sharing")


@pytest.fixture(scope="module")
def model(prefix_sharing: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    return prefix_sharing.make_model("cpu", PREFIX + SUFFIX + 2).requires_grad_(False)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs the main function of a script. Returns what it prints."""

    def run(module: ModuleType, *args: str) -> str:
        monkeypatch.setattr("sys.argv", [module.__name__, "--device=cpu", *args])
        assert not module.main()
        return capsys.readouterr().out

    return run


def test_prefix_sharing(main: Main, prefix_sharing: ModuleType) -> None:
    """aot_eager runs all of torch.compile but the C++ compiler, which takes long."""
    sizes = (f"--requests={REQUESTS}", f"--prefix={PREFIX}", f"--suffix={SUFFIX}", "--decode=4", "--repeats=1")
    lines = main(prefix_sharing, *sizes, "--backend=aot_eager").splitlines()
    closing = r"OK: logits equal \(max abs diff (\S+)\); prefill (.+) faster, (\d+) of (\d+) prompt tokens"
    found = re.match(closing, lines[-1])
    assert found, lines
    assert 0 <= float(found[1]) <= 1e-5
    assert re.findall(r"\d+\.\dx \((\w+)\)", found[2]) == ["eager", "compiled"]
    assert int(found[3]) == (REQUESTS - 1) * PREFIX
    assert int(found[4]) == REQUESTS * (PREFIX + SUFFIX)
    rows = [line for line in lines if line.split()[0] in ("eager", "compiled")]
    assert [row.split()[0] for row in rows] == ["eager", "compiled"]
    for row in rows:
        tokens = [int(count) for count in re.findall(r"(\d+) tokens", row)]
        assert tokens == [REQUESTS * (PREFIX + SUFFIX), PREFIX + REQUESTS * SUFFIX]


def copies_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def copies_a_token_less(src: Any, dst: Any, pairs: Any, tokens: slice, **kwargs: int) -> None:
    copy_tokens(src, dst, pairs, slice(tokens.stop - 1), **kwargs)


def copies_a_token_more(src: Any, dst: Any, pairs: Any, tokens: slice, **kwargs: int) -> None:
    copy_tokens(src, dst, pairs, slice(tokens.stop + 1), **kwargs)


class TestPrefixSharingChecksCanFail:
    @pytest.mark.parametrize("copy", [copies_nothing, copies_a_token_less, copies_a_token_more])
    def test_check_of_the_copy(self, prefix_sharing: ModuleType, model: torch.nn.Module, copy: Any) -> None:
        kv = prefix_sharing.used_cache(model, REQUESTS, PREFIX + SUFFIX + 2)
        with pytest.raises(AssertionError, match="has not got the prefix of row 0"):
            prefix_sharing.check_copy(prefix_sharing.Decoder(model, copy=copy), kv, PREFIX)

    @pytest.mark.parametrize("copy", [copies_nothing, copy_tokens])
    def test_check_of_the_logits(self, prefix_sharing: ModuleType, model: torch.nn.Module, copy: Any) -> None:
        prompts = torch.randint(2048, (REQUESTS, PREFIX + SUFFIX))
        prompts[:, :PREFIX] = prompts[0, :PREFIX]
        decoder = prefix_sharing.Decoder(model, copy=copy)
        decoded = []
        for prefill, args in ((decoder.prefill_everything, ()), (decoder.prefill_once_and_copy, (PREFIX,))):
            kv = prefix_sharing.used_cache(model, REQUESTS, PREFIX + SUFFIX + 2)
            decoded.append(decoder.decode(kv, prefill(kv, prompts, *args), PREFIX + SUFFIX, 2))
        if copy is copies_nothing:
            with pytest.raises(AssertionError, match="not close"):
                prefix_sharing.check_decoded(*decoded)
        else:
            assert prefix_sharing.check_decoded(*decoded) <= prefix_sharing.TOLERANCE


def test_beam_search(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_example("beam_search")
    assert re.search(r"\none reordering, .*: [\d.]+ ms in place, [\d.]+ ms by transformers\n$", main(module))
    monkeypatch.setattr(module.InPlaceCache, "reorder_cache", lambda self, beam_idx: None)
    with pytest.raises(AssertionError, match="other tokens than with transformers' own cache"):
        main(module)


def test_paged_blocks(main: Main, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Also on the NPU. The examples with a model need operators that the simulated runtime lacks."""
    module, option = load_example("paged_blocks"), f"--device={device}"
    assert main(module, option).count("as they were") == 4
    for broken, what in (("copy_blocks", "fork"), ("swap_blocks", "out and in")):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, copies_nothing)
            with pytest.raises(AssertionError, match=f"{what}, blocks .*: other contents than before"):
                main(module, option)
