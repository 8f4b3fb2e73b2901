# SPDX-License-Identifier: Apache-2.0
"""Code that Python runs in the middle of a call: destructors, signal handlers, forks. Nothing may hang, and the caches
must stay consistent.

Each test runs in its own process, which a watchdog ends.
"""

from fresh_process import run_code

HEAD = """
import contextlib, faulthandler, gc, os, signal, sys, threading
faulthandler.dump_traceback_later(30, exit=True)
import torch
from llm_datadist_torch import *
from llm_datadist_torch import ops

desc = CacheDesc(1, (4, 8), DataType.DT_FLOAT, Placement.HOST)
datadist = LLMDataDist(LLMRole.MIX, 0)
config = LLMConfig(enable_cache_manager=True, sync_kv_timeout=20_000)
config.host_mem_pool_cfg = '{"memory_size": 512}'  # four caches
datadist.init(config.generate_options())
manager = datadist.cache_manager

def code_of(call, *args):
    try:
        call(*args)
    except LLMException as error:
        return error.status_code.name

def free_caches():
    held = []
    while code_of(lambda: held.append(manager.allocate_cache(desc))) is None:
        pass
    return len(held)

def during_an_allocation(act):
    # The next call of torch.empty runs this first.
    real = torch.empty
    def empty(*args, **kwargs):
        torch.empty = real
        act()
        return real(*args, **kwargs)
    torch.empty = empty
"""


def printed(code: str) -> list[str]:
    done = run_code(HEAD + code)
    assert "Exception ignored" not in done.stderr, done.stderr  # raised by a destructor
    return done.stdout.splitlines()


def test_other_threads_are_not_blocked_by_an_allocation() -> None:
    code = """
held = manager.allocate_cache(desc)
other = threading.Thread(target=manager.deallocate_cache, args=(held,))
during_an_allocation(lambda: (other.start(), other.join()))
print(manager.allocate_cache(desc).cache_id, held.tensors)
"""
    assert printed(code) == ["2 []"]


def test_a_nested_call_takes_the_key_during_an_allocation() -> None:
    code = """
during_an_allocation(lambda: manager.allocate_cache(desc, [CacheKey(0, 1)]))
print(code_of(manager.allocate_cache, desc, [CacheKey(0, 1)]), free_caches())
"""
    assert printed(code) == ["LLM_PARAM_INVALID 3"]


def test_nested_call_at_every_line_of_the_registry() -> None:
    """At each line another call is made first, as by a destructor or a signal handler."""
    code = """
def allocate():
    endings.append((manager.deallocate_cache, manager.allocate_cache(desc, [CacheKey(0, 3)])))

def register():
    held = manager.register_cache(desc, [torch.zeros(4, 8)], [CacheKey(0, 3)])
    endings.append((manager.unregister_cache, held.cache_id))

def end():
    for call, held in endings:
        call(held)

def remove_keys():
    for number in (1, 2, 3):
        manager.remove_cache_key(CacheKey(0, number))

def finalize():
    datadist.finalize()

def trace(frame, event, _):
    global lines
    if not frame.f_code.co_filename.endswith("registry.py"):
        return None
    if event == "line":
        lines += 1
        if lines == stop:
            sys.settrace(None)
            during()
    return trace

for call in (allocate, register, end, remove_keys, finalize):
    for during in (end, remove_keys, finalize):
        stop, lines = 0, 0
        while lines >= stop:
            datadist.init(config.generate_options())
            manager, lines, stop = datadist.cache_manager, 0, stop + 1
            plain = manager.allocate_cache(desc, [CacheKey(0, 1), CacheKey(0, 2)])
            blocks = manager.allocate_blocks_cache(desc, BlocksCacheKey(0))
            endings = [(manager.deallocate_cache, plain), (manager.deallocate_blocks_cache, blocks)]
            sys.settrace(trace)
            code = code_of(call)
            sys.settrace(None)
            finalized = call is finalize or (during is finalize and lines >= stop)
            where = (call.__name__, during.__name__, stop, code)
            assert code is None or (code == "LLM_ENGINE_FINALIZED" and finalized), where
            end()
            remove_keys()
            assert not plain.tensors and not blocks.tensors, where
            assert free_caches() == (0 if finalized else 4), where
            datadist.finalize()
        print(stop > 5)
"""
    assert printed(code) == ["True"] * 15


COPY = """
held = manager.allocate_cache(desc)
tensor = held.tensors[0]
tensor.copy_(torch.arange(32.0).view(1, 4, 8))
def interrupted(real):
    def call(*args, **kwargs):
        signal.raise_signal(signal.SIGUSR1)
        return real(*args, **kwargs)
    return call

ops.copy_cache_blocking = interrupted(ops.copy_cache_blocking)
signal.signal(signal.SIGUSR1, lambda *_: datadist.finalize())
"""


class TestFinalizeInASignalHandler:
    def test_during_a_copy(self) -> None:
        """The copy already has its tensors, and completes. Later calls are refused, until init."""
        code = """
print(code_of(manager.copy_cache, held, held, 0, 1), torch.equal(tensor[0, 0], tensor[0, 1]), held.tensors)
print(code_of(manager.copy_cache, held, held, 0, 1))
datadist.init(config.generate_options())
print(datadist.cache_manager.allocate_cache(desc).cache_id)
"""
        assert printed(COPY + code) == ["None True []", "LLM_ENGINE_FINALIZED", "1"]

    def test_during_init(self) -> None:
        code = """
datadist.finalize()
LLMConfig.from_options = interrupted(LLMConfig.from_options)
datadist.init(config.generate_options())
print(datadist.cache_manager.allocate_cache(desc).cache_id)
"""
        assert printed(COPY + code) == ["1"]

    def test_during_finalize_in_another_thread(self) -> None:
        """That thread waits for the copy, and the copy for the handler."""
        code = """
def handler(*_):
    other.start()
    other.join(0.2)
    print(other.is_alive())
    datadist.finalize()

other = threading.Thread(target=datadist.finalize)
signal.signal(signal.SIGUSR1, handler)
print(code_of(manager.copy_cache, held, held, 0, 1))
other.join()
print(held.tensors)
"""
        assert printed(COPY + code) == ["True", "None", "[]"]


def test_fork_while_another_thread_holds_the_locks() -> None:
    code = """
from llm_datadist_torch.datadist import fork
held = manager.allocate_cache(desc)
entered, leave = threading.Event(), threading.Event()
def hold():
    with contextlib.ExitStack() as stack:
        for lock in fork._locks:
            stack.enter_context(lock.current)
        entered.set()
        leave.wait()

threading.Thread(target=hold).start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)  # the watchdog's thread is not there either
    manager.copy_cache(held, held, 0, 1)
    manager.deallocate_cache(held)
    print(free_caches(), flush=True)
    datadist.finalize()
    os._exit(0)
print(len(fork._locks) >= 3, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
leave.set()
"""
    assert printed(code) == ["4", "True 0"]
