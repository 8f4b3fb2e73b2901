# SPDX-License-Identifier: Apache-2.0
"""A server for LLM-DataDist that retries, evicts and cleans up by status code."""

import torch
from llm_datadist import CacheDesc, CacheKey, DataType, LLMConfig, LLMDataDist, LLMException, LLMRole, LLMStatusCode

ROW = 32 * 1024 * 1024
DEVICE = "npu:0" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"
FATAL = (LLMStatusCode.LLM_FAILED, LLMStatusCode.LLM_DEVICE_MEM_ERROR, LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR)


class Server:
    def __init__(self, timeout):
        self.handled = []
        self.requests = {}
        self.big_tensors = [torch.zeros(4, ROW, dtype=torch.uint8).to(DEVICE) for _ in range(2)]
        self.datadist = LLMDataDist(LLMRole.MIX, 0)
        self.start(timeout)

    def start(self, timeout):
        config = LLMConfig()
        config.device_id = 0
        config.enable_cache_manager = True
        config.sync_kv_timeout = timeout
        config.mem_pool_cfg = '{"memory_size": 65536}'
        self.datadist.init(config.generate_options())
        self.manager = self.datadist.cache_manager
        desc = CacheDesc(2, [4, ROW], DataType.DT_UINT8)
        self.big = self.manager.register_cache(desc, [tensor.data_ptr() for tensor in self.big_tensors])

    def handle(self, error, recover):
        """Recovers from an error that the server knows. Others end it."""
        if error.status_code in FATAL or error.status_code not in recover:
            raise error
        self.handled.append(error.status_code.name)
        recover[error.status_code]()

    def retry(self, call, recover):
        for _ in range(5):
            try:
                return call()
            except LLMException as error:
                self.handle(error, recover)
        raise RuntimeError("too many attempts")

    def admit(self, req_id):
        desc = CacheDesc(1, [2, 10240], DataType.DT_UINT8)
        keys = [CacheKey(0, req_id)]
        recover = {LLMStatusCode.LLM_OUT_OF_MEMORY: self.evict_oldest}
        self.requests[req_id] = self.retry(lambda: self.manager.allocate_cache(desc, keys), recover)

    def evict_oldest(self):
        req_id = next(iter(self.requests))
        self.manager.deallocate_cache(self.requests.pop(req_id))
        self.manager.remove_cache_key(CacheKey(0, req_id))

    def restart_with_more_time(self):
        self.datadist.finalize()
        self.start(60000)


def main():
    server = Server(timeout=1)

    # 64 MiB do not fit into one millisecond. The server restarts LLM-DataDist with a longer timeout.
    for tensor in server.big_tensors:
        tensor[0].copy_(torch.ones(ROW, dtype=torch.uint8))
    recover = {LLMStatusCode.LLM_TIMEOUT: server.restart_with_more_time}
    server.retry(lambda: server.manager.copy_cache(server.big, server.big, 1, 0, req_id=1), recover)
    for tensor in server.big_tensors:
        assert bool(tensor[1].cpu().all())

    # The pool holds three requests: each of two more evicts the oldest.
    for req_id in range(10, 15):
        server.admit(req_id)
    assert list(server.requests) == [12, 13, 14]

    # A copy from a cache that was evicted meanwhile. The request is admitted again.
    evicted = server.requests[12]
    server.evict_oldest()
    server.requests[12] = evicted
    recover = {LLMStatusCode.LLM_KV_CACHE_NOT_EXIST: lambda: server.admit(12)}
    server.retry(lambda: server.manager.copy_cache(server.requests[13], server.requests[12]), recover)

    # A mistake of the program is not retried. Its text names the value.
    mistake = None
    try:
        server.manager.copy_cache(server.requests[13], server.requests[14], 2)
    except LLMException as error:
        mistake = error
    assert mistake.status_code == LLMStatusCode.LLM_PARAM_INVALID
    assert "dst_batch_index (2)" in str(mistake)

    while server.requests:
        server.evict_oldest()
    server.manager.unregister_cache(server.big.cache_id)
    server.datadist.finalize()
    assert server.handled == ["LLM_TIMEOUT", "LLM_OUT_OF_MEMORY", "LLM_OUT_OF_MEMORY", "LLM_KV_CACHE_NOT_EXIST"]
    print("done")


if __name__ == "__main__":
    main()
