# SPDX-License-Identifier: Apache-2.0
"""The public Python names of LLM-DataDist, with their arguments, defaults and numbers. Facts, for compare_api.py.

Source: its API reference and package in CANN 9. A setting of LLMConfig has its option in Annotated.
"""

from enum import Enum, IntEnum
from typing import Annotated

MODULES = {
    "configs": ["LLMClusterInfo", "LLMRole", "LlmConfig"],
    "data_type": ["DataType"],
    "status": ["LLMException", "LLMStatusCode", "Status"],
    "v2.cache_manager": ["CacheManager"],
    "v2.config": ["LLMRole", "LlmConfig"],
    "v2.llm_datadist": ["LLMDataDist"],
    "v2.llm_types": [
        "BlocksCacheKey",
        "Cache",
        "CacheDesc",
        "CacheKey",
        "CacheKeyByIdAndIndex",
        "CacheTask",
        "KvCache",
        "LayerSynchronizer",
        "MemInfo",
        "Memtype",
        "Placement",
        "RegisterMemStatus",
        "TransferConfig",
        "TransferWithCacheKeyConfig",
    ],
}

class Placement(IntEnum):
    HOST = 0
    DEVICE = 1

class LLMDataDist:
    def __init__(self, role, cluster_id): ...
    def init(self, options): ...
    def finalize(self): ...
    cache_manager: CacheManager
    cluster_id: int
    kv_cache_manager: KvCacheManager
    def link_clusters(self, clusters, timeout=3000): ...
    def unlink_clusters(self, clusters, timeout=3000, force=False): ...
    def check_link_status(self, remote_cluster_id): ...
    def switch_role(self, role, switch_options=None): ...
    def link(self, comm_name, cluster_rank_info, rank_table): ...
    def unlink(self, comm_id): ...
    def query_register_mem_status(self, comm_id): ...

class CacheManager:
    def allocate_cache(self, cache_desc, cache_keys=()): ...
    def deallocate_cache(self, cache): ...
    def allocate_blocks_cache(self, cache_desc, blocks_cache_key=None): ...
    def deallocate_blocks_cache(self, cache): ...
    def register_cache(self, cache_desc, addrs, cache_keys=(), remote_accessible=None): ...
    def register_blocks_cache(self, cache_desc, addrs, blocks_cache_key=None, remote_accessible=None): ...
    def unregister_cache(self, cache_id): ...
    def remove_cache_key(self, cache_key): ...
    @staticmethod
    def check_cache_key(cache_key): ...
    def copy_cache(self, dst, src, dst_batch_index=0, src_batch_index=0, offset=0, size=-1, req_id=None): ...
    def copy_blocks(self, cache, copy_block_info): ...
    def swap_blocks(self, src_cache, dst_cache, src_to_dst): ...
    def pull_cache(self, cache_key, cache, batch_index=0, size=-1, **kwargs): ...
    def pull_blocks(self, src_cache_key, dst_cache, src_blocks=(), dst_blocks=(), **kwargs): ...
    def push_cache(
        self,
        dst_cache_key,
        src_cache,
        src_batch_index=0,
        src_layer_range=None,
        dst_layer_range=None,
        size=-1,
        tensor_num_per_layer=2,
    ): ...
    def push_blocks(
        self,
        dst_cache_key,
        src_cache,
        src_blocks=(),
        dst_blocks=(),
        src_layer_range=None,
        dst_layer_range=None,
        tensor_num_per_layer=2,
    ): ...
    def transfer_cache_async(
        self,
        src_cache,
        layer_synchronizer,
        transfer_configs,
        src_block_indices=None,
        dst_block_indices=None,
        dst_block_memory_size=None,
    ): ...
    def remap_registered_memory(self, mem_infos): ...

class LLMConfig:
    def __init__(self): ...
    def generate_options(self): ...
    def gen_options(self): ...
    options: dict
    ge_options: dict = {}  # noqa: RUF012
    device_id: Annotated[int | list | tuple, "ge.exec.deviceId"] = None
    sync_kv_timeout: Annotated[int | str, "llm.SyncKvCacheWaitTime"] = None
    enable_cache_manager: Annotated[bool, "llm.EnableCacheManager"] = False
    local_comm_res: Annotated[str, "llm.LocalCommRes"] = ""
    mem_pool_cfg: Annotated[str, "llm.MemPoolConfig"] = ""
    host_mem_pool_cfg: Annotated[str, "llm.HostMemPoolConfig"] = ""
    listen_ip_info: Annotated[str, "llm.listenIpInfo"] = ""
    enable_remote_cache_accessible: Annotated[bool, "llm.EnableRemoteCacheAccessible"] = False
    enable_switch_role: Annotated[bool, "llm.EnableSwitchRole"] = False
    link_total_time: Annotated[int, "llm.LinkTotalTime"] = 0
    link_retry_count: Annotated[int, "llm.LinkRetryCount"] = 1
    rdma_traffic_class: Annotated[int, "llm.RdmaTrafficClass"] = None
    rdma_service_level: Annotated[int, "llm.RdmaServiceLevel"] = None
    transfer_backend: Annotated[str, "llm.TransferBackend"] = ""
    global_resource_config: Annotated[str, "llm.GlobalResourceConfig"] = ""
    mem_utilization: Annotated[float, "llm.MemoryUtilization"] = 0.95
    buf_pool_cfg: Annotated[str, "llm.BufPoolCfg"] = ""
    cluster_info: Annotated[str, "llm.ClusterInfo"] = ""
    deploy_res_path: Annotated[str, "llm.deployResPath"] = ""
    output_max_size: Annotated[int, "llm.OutputMaxSize"] = None

LlmConfig = LLMConfig

class CacheDesc:
    def __init__(
        self,
        num_tensors,
        shape,
        data_type,
        placement=Placement.DEVICE,
        batch_dim_index=0,
        seq_len_dim_index=-1,
        kv_tensor_format=None,
    ): ...
    num_tensors: int
    shape: list | tuple
    data_type: DataType
    placement: Placement
    batch_dim: int
    batch_size: int
    seq_len_dim_index: int
    kv_tensor_format: str
    size: int
    def update_dim(self, dim_index, dim_value): ...

class Cache:
    cache_id: int
    cache_desc: CacheDesc
    tensor_addrs: list
    is_blocks_cache: bool
    @classmethod
    def create_cpu_cache(cls, cache_desc, addrs): ...

class CacheKey:
    def __init__(self, cluster_id, req_id, model_id=0, prefix_id=18446744073709551615): ...
    cluster_id: int
    prompt_cluster_id: int
    req_id: int
    model_id: int
    prefix_id: int

class BlocksCacheKey:
    def __init__(self, cluster_id, model_id=0): ...
    cluster_id: int
    prompt_cluster_id: int
    model_id: int

class CacheKeyByIdAndIndex:
    def __init__(self, cluster_id, cache_id, batch_index=0): ...
    cluster_id: int
    cache_id: int
    batch_index: int

class LLMStatusCode(IntEnum):
    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_UNKNOWN_ERROR = -1
    LLM_WAIT_PROCESS_TIMEOUT = 0x5010B001
    LLM_KV_CACHE_NOT_EXIST = 0x5010B002
    LLM_REPEAT_REQUEST = 0x5010B003
    LLM_REQUEST_ALREADY_COMPLETED = 0x5010B004
    LLM_PARAM_INVALID = 0x5010B005
    LLM_ENGINE_FINALIZED = 0x5010B006
    LLM_NOT_YET_LINK = 0x5010B007
    LLM_ALREADY_LINK = 0x5010B008
    LLM_LINK_FAILED = 0x5010B009
    LLM_UNLINK_FAILED = 0x5010B00A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00C
    LLM_PROCESSING_LINK = 0x5010B00D
    LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00E
    LLM_PREFIX_ALREADY_EXIST = 0x5010B00F
    LLM_PREFIX_NOT_EXIST = 0x5010B010
    LLM_SEQ_LENOVERLIMIT = 0x5010B011
    LLM_NO_FREE_BLOCK = 0x5010B012
    LLM_BLOCKS_OUT_OF_MEMORY = 0x5010B013
    LLM_EXIST_LINK = 0x5010B018
    LLM_FEATURE_NOT_ENABLED = 0x5010B019
    LLM_TIMEOUT = 0x5010B01A
    LLM_LINK_BUSY = 0x5010B01B
    LLM_OUT_OF_MEMORY = 0x5010B01C
    LLM_DEVICE_MEM_ERROR = 507053
    LLM_SUSPECT_REMOTE_ERROR = 507057

class LLMException(RuntimeError):
    def __init__(self, *args, status_code=LLMStatusCode.LLM_SUCCESS): ...
    status_code: LLMStatusCode

class LLMRole(IntEnum):
    PROMPT = 1
    DECODER = 2
    MIX = 3

class DataType(Enum):
    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27

class LLMClusterInfo:
    def __init__(self): ...
    remote_cluster_id: int
    remote_role_type: LLMRole
    local_ip_info_list: list
    remote_ip_info_list: list
    def append_local_ip_info(self, ip, port): ...
    def append_remote_ip_info(self, ip, port): ...

class TransferConfig:
    def __init__(self, dst_cluster_id, dst_addrs, src_layer_range=None, src_batch_index=0): ...
    dst_cluster_id: int
    dst_addrs: list
    src_layer_range: range
    src_batch_index: int

class TransferWithCacheKeyConfig:
    def __init__(self, cache_key, src_layer_range=None, dst_layer_range=None, src_batch_index=0): ...
    cache_key: BlocksCacheKey | CacheKeyByIdAndIndex
    src_layer_range: range
    dst_layer_range: range
    src_batch_index: int

class LayerSynchronizer:
    def synchronize_layer(self, layer_index, timeout_in_millis): ...

class CacheTask:
    def synchronize(self, timeout_in_millis=None): ...
    def get_results(self, timeout_in_millis=None): ...

class MemInfo:
    def __init__(self, mem_type, addr, size): ...
    mem_type: Memtype
    addr: int
    size: int

class Memtype(Enum):
    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1

class RegisterMemStatus(Enum):
    OK = 0
    PREPARING = 1
    FAILED = 2

class Status:
    def __init__(self, status): ...
    def is_ok(self): ...
    status_code: LLMStatusCode

class KvCache: ...
class KvCacheManager: ...
class Tensor: ...
class TensorDesc: ...
