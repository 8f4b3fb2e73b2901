# SPDX-License-Identifier: Apache-2.0
"""The end of a process with copies in flight, and a process that forks."""

import pytest
from npu_utils import run_forked, run_python


@pytest.mark.assumption("A process may end with copies in flight")
@pytest.mark.parametrize("end", ["", "torch.npu.synchronize()"])
def test_exit_with_copies_in_flight(end: str) -> None:
    """A task is the last owner of pageable memory that was freed. If torch_npu's thread released it while Python exits,
    Python would end that thread, and the process would abort (6 of 10 times)."""
    done = run_python(f"""
from utils import *
held, host = filled(3, 64, 8, device="npu"), filled(3, 64, 8)
turned = whole_rows(torch.arange(64), torch.arange(64).roll(1))
for _ in range(200):
    copy_cache_batch([held], [held], turned, batch_dim=1)
    copy_cache_batch([held], [host], turned, batch_dim=1)
src = [torch.ones(4, 1024).npu()]
for _ in range(300):
    copy_cache([torch.empty(4, 1024)], src, 1, 2)
{end}
print("OK")
""")
    assert done.stdout == "OK\n", done.stderr


@pytest.mark.assumption("torch_npu's task queue runs nothing in a forked child")
def test_fork_after_use() -> None:
    """torch_npu's task queue has no thread in a child, so queued work never runs there: the manager reports a timeout.
    (torch_npu's own synchronize would wait forever.) Copies on the CPU work."""
    done = run_forked("""
from utils import *
held = filled(3, 4, 8, device="npu")
copy_cache([held], [held], 0, 1, batch_dim=1)
on_host = torch.zeros(2, 2**22, dtype=torch.uint8)
copy_cache([on_host], [on_host], 0, 1)
torch.npu.synchronize()
child = os.fork()
if child == 0:
    check_copy([filled(4, 8)], [filled(4, 8, seed=1)], 1, 2)
    held = llm_datadist_torch.Cache.from_tensors(held, batch_dim=1)
    manager = llm_datadist_torch.CacheManager(llm_datadist_torch.LLMConfig(sync_kv_timeout=100))
    try:
        manager.copy_cache(held, held, 2, 3)
    except RuntimeError as error:
        os.write(1, f"{error}\\n".encode())
        os._exit(3)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    text, code = done.stdout.splitlines()
    assert "not done after sync_kv_timeout, 100 ms" in text
    assert code == "3"
