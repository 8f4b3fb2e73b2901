# SPDX-License-Identifier: Apache-2.0
"""A signal handler that raises, as Ctrl-C does, at every bytecode of a call: no lock stays taken, and no cache is lost.

Each test runs in its own process, which a watchdog ends.
"""

import sys

import pytest
from fresh_process import run_code

HEAD = """
import ctypes, dis, faulthandler, functools, logging, signal, sys, threading, traceback, weakref
faulthandler.dump_traceback_later(100, exit=True)
import torch
from llm_datadist_torch import *

desc = CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST)
config = LLMConfig(enable_cache_manager=True, sync_kv_timeout=20_000)
config.host_mem_pool_cfg = '{"memory_size": 512}'  # four caches
options = config.generate_options()
logging.getLogger("LLM_DATADIST").setLevel(logging.CRITICAL)  # each check is refused once

# As a trace function, it lets a signal arrive and runs no bytecode itself. So the interpreter runs the handler where it would
# run it without tracing.
signal_arrives = ctypes.pythonapi.PyErr_SetInterrupt
signal_arrives.argtypes, signal_arrives.restype = [ctypes.py_object] * 3, None

def handler(*_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one signal is enough
    raise KeyboardInterrupt

@functools.cache
def offsets(code):
    # The bytecodes after which CPython looks for signals. Before the others, a signal has the effect that it has here.
    looks = ("CALL", "JUMP", "FOR_ITER", "RESUME", "RETURN", "BEFORE_WITH", "SETUP_WITH")
    return {each.offset for each in dis.get_instructions(code) if each.opname.startswith(looks)}

def interrupted(call, number):
    # Makes the call. A signal arrives after so many of these bytecodes. Returns whether the call has fewer, the function that
    # was interrupted, and the result.
    left, where, results = number, None, []

    def trace(frame, event, _):
        nonlocal left
        frame.f_trace_opcodes = True
        if event != "opcode" or frame.f_lasti not in offsets(frame.f_code):
            return trace
        left -= 1
        if left != 0:
            return trace
        caller = frame.f_back
        while caller is not None:
            caller.f_trace = caller.f_trace and signal_arrives
            caller = caller.f_back
        return signal_arrives

    signal.signal(signal.SIGINT, handler)
    try:
        try:
            sys.settrace(trace)
            results.append(call())
        finally:
            sys.settrace(None)
    except KeyboardInterrupt as interrupt:
        where = traceback.extract_tb(interrupt.__traceback__)[-2].name  # the last one is the handler
    sys.settrace(None)
    return left > 0, where, results

def in_another_thread(check):
    done = []
    thread = threading.Thread(target=lambda: (check(), done.append(True)), daemon=True)
    thread.start()
    thread.join(20)
    assert done, f"bytecode {number}: " + ("a lock is taken" if thread.is_alive() else "see above")

def free_caches():
    held = []
    try:
        while True:
            held.append(manager.allocate_cache(desc))
    except LLMException as error:
        assert error.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
    for one in held:
        manager.deallocate_cache(one)
    return len(held)

interrupts, number, finished = 0, -1, False
while not finished or number < 1:  # first without a signal: newer interpreters trace bytecodes from the second call on
    number += 1
    manager = CacheManager(config)
"""

LOOP = """
    finished, where, results = interrupted(call, number)
    in_another_thread(check)
    interrupts += where is not None
print(interrupts)
"""


def interrupts(code: str) -> int:
    """Runs the loop with code that makes the caches and defines ``call`` and ``check``."""
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    return int(run_code(HEAD + body + LOOP).stdout)


@pytest.mark.parametrize("call", ["copy_cache(plain, plain, 0, 1)", "copy_blocks(blocks, {1: [0]})"])
def test_copies(call: str, device: str) -> None:
    code = f"""
described = CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.{"HOST" if device == "cpu" else "DEVICE"})
plain, blocks = manager.allocate_cache(described), manager.allocate_blocks_cache(described)
held = blocks if "blocks" in {call!r} else plain
held.tensors[0].copy_(torch.arange(32.0).view(1, 4, 8))
def call():
    manager.{call}
def check():
    call()
    assert torch.equal(held.tensors[0].cpu()[0, 0], torch.arange(8.0, 16))
"""
    assert interrupts(code) > 20


@pytest.mark.parametrize(
    ("call", "end"),
    [
        ("allocate_cache(desc, [CacheKey(0, 1)])", "deallocate_cache(held)"),
        ("register_blocks_cache(desc, [torch.zeros(4, 8)], BlocksCacheKey(0))", "unregister_cache(held.cache_id)"),
    ],
)
def test_new_caches(call: str, end: str) -> None:
    """Either the caller gets the cache, or nothing of it remains: its memory counts no more, its key is free.

    Before Python 3.11, a signal can come after a function has returned and before its caller has the result.
    """
    code = f"""
def call():
    return manager.{call}
def check():
    if sys.version_info < (3, 11) and where in ("interrupted", "call", {call.partition("(")[0]!r}) and not results:
        return
    held = results[0] if results else call()
    manager.{end}
    manager.remove_cache_key(CacheKey(0, 1))
    assert free_caches() == 4
"""
    assert interrupts(code) > 20


@pytest.mark.parametrize("call", ["deallocate_cache(held)", "remove_cache_key(CacheKey(0, 1))", "finalize()"])
def test_ends_of_caches(call: str) -> None:
    """An interrupted call can be made again."""
    code = f"""
held = manager.allocate_cache(desc, [CacheKey(0, 1)])
memory = weakref.ref(held.tensors[0])
def call():
    manager.{call}
def check():
    call()
    manager.deallocate_cache(held)
    manager.remove_cache_key(CacheKey(0, 1))
    assert memory() is None
    if {call!r} != "finalize()":
        assert free_caches() == 4
"""
    assert interrupts(code) > 20


def test_release_of_the_memory() -> None:
    """Who registered the memory elsewhere is told."""
    code = """
from llm_datadist_torch.datadist.registry import CacheRegistry, NewCache
registry, released, held = CacheRegistry({}), [], Cache.from_tensors(torch.zeros(4, 8))
registry.call_on_release(released.append)
registry.add(NewCache(held, (), allocated=False, remote_accessible=True))
def call():
    registry.end(held.cache_id)
def check():
    call()
    assert released
"""
    assert interrupts(code) > 20


@pytest.mark.parametrize("call", ["init(options)", "finalize()"])
def test_lifetime_of_llm_datadist(call: str) -> None:
    code = f"""
datadist = LLMDataDist(LLMRole.MIX, 0)
if {call!r} == "finalize()":
    datadist.init(options)
def call():
    datadist.{call}
def check():
    datadist.finalize()
    datadist.init(options)
    datadist.cache_manager.allocate_cache(desc)
    datadist.finalize()
"""
    assert interrupts(code) > 20


def test_wait_for_a_transfer() -> None:
    """The transfer can end, and the next wait returns."""
    code = """
task = CacheTask([1])
def call():
    task.synchronize(1)
def check():
    task.note(0, LLMStatusCode.LLM_SUCCESS)
    task.finish()
    assert task.synchronize(1) is LLMStatusCode.LLM_SUCCESS
"""
    assert interrupts(code) > (20 if sys.version_info < (3, 12) else 15)  # Python 3.12 looks for signals less often
