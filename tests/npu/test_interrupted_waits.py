# SPDX-License-Identifier: Apache-2.0
"""Signals that arrive while the manager waits for a stalled device."""

import signal
import threading
import time
from collections.abc import Iterator

import ascend_sim
import pytest
import torch
from npu_utils import PATIENT, blocked_queue, caches, check_manager_copy, stalled_device
from utils import assert_same_bytes, copy_cache, reference_copy, to_host

from llm_datadist_torch import CacheManager, LLMConfig, LLMException

pytestmark = pytest.mark.simulated


class Interrupted(Exception):
    """What the signal handler of a test raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM raises, as Ctrl-C does."""

    def handler(*args: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
class TestInterrupt:
    """The patient manager would wait for a minute. A stall ends after 20 seconds, and then the call returns."""

    def interrupted(self, dst: object, src: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            PATIENT.copy_cache(dst, src, 1, 2)

    def test_of_a_copy(self) -> None:
        """The copy goes on. The next one waits for it."""
        (dst, src), later = caches("plain"), caches("plain")
        check_manager_copy(dst, src)
        with stalled_device():
            self.interrupted(dst, src)
            with pytest.raises(LLMException, match="sync_kv_timeout"):
                CacheManager(LLMConfig(sync_kv_timeout=30)).copy_cache(*later, 1, 2)
        expected = reference_copy(later[0].tensors, dst.tensors, 3, 1)
        PATIENT.copy_cache(later[0], dst, 3, 1)
        assert_same_bytes(later[0].tensors, expected)

    def test_of_the_wait_for_an_earlier_copy(self) -> None:
        """The second copy has not begun, and does not run."""
        first, second = caches("plain"), caches("plain")
        check_manager_copy(*first)
        unchanged = [to_host(tensor) for tensor in second[0].tensors]
        with stalled_device():
            self.interrupted(*first)
            self.interrupted(*second)
        check_manager_copy(*first)
        assert_same_bytes(second[0].tensors, unchanged)

    def test_behind_a_blocked_queue(self) -> None:
        dst, src = caches("plain")
        check_manager_copy(dst, src)
        with blocked_queue():
            self.interrupted(dst, src)
            assert ascend_sim.blocked_submitters()
        check_manager_copy(dst, src)

    def test_in_the_middle_of_many_copies(self) -> None:
        """Between any two steps of a call."""
        dst, src = caches("plain")
        for step in range(200):
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + step))
                while True:
                    PATIENT.copy_cache(dst, src, 1, 2)
        check_manager_copy(dst, src)


def test_a_handler_that_returns() -> None:
    """The copy goes on, and so do those of the handler."""
    (dst, src), others, calls = caches("plain"), caches("plain"), []

    def handler(*args: object) -> None:
        calls.append(args)
        copy_cache(others[0].tensors, others[1].tensors, 1, 2)
        stall.set()

    check_manager_copy(dst, src)
    expected = reference_copy(dst.tensors, src.tensors, 3, 0)
    stall, before = threading.Event(), signal.signal(signal.SIGALRM, handler)

    def stalled() -> None:
        torch.npu.set_device(0)
        with stalled_device():
            ready.set()
            stall.wait(20)

    ready = threading.Event()
    thread = threading.Thread(target=stalled)
    thread.start()
    ready.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    PATIENT.copy_cache(dst, src, 3, 0)
    signal.signal(signal.SIGALRM, before)
    thread.join()
    assert len(calls) == 1
    assert_same_bytes(dst.tensors, expected)


def test_ctrl_c() -> None:
    dst, src = caches("plain")
    check_manager_copy(dst, src)
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    with stalled_device():
        timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            PATIENT.copy_cache(dst, src, 1, 2)
        assert time.monotonic() - started < 10
    signal.signal(signal.SIGINT, before)
    check_manager_copy(dst, src)
