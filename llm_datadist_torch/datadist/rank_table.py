# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``LLMDataDist.link``: who the clusters of a communicator are, and where each listens.

The tables are those of HCCL. Their ``device_ip`` is on the network of the NPUs, and no address of the process. So the addresses
come from ``HOSTS``, or else from the table: ``host_ip`` of a server, or its ``server_id``.
"""

import ipaddress
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .checks import UINT64, check_int, check_type
from .cluster_info import Address
from .status import LLMException, param_invalid

HOSTS = "LLM_DATADIST_LINK_HOSTS"
"""The environment variable with the host of each server: JSON, from its server_id to a host, or to "host:port"."""
PORT = "LLM_DATADIST_LINK_PORT"
"""The environment variable with the first port of the processes that call ``link``."""
DEFAULT_PORT = 26100

_MAX_NAME = 127
_MIN_CLUSTERS, _MAX_CLUSTERS = 2, 4


@dataclass(frozen=True)
class RankTable:
    """The clusters of a communicator.

    Attributes:
        ranks: The rank of each cluster. The process of the higher rank calls that of the lower.
        addresses: Where the process of each cluster listens.
    """

    ranks: dict[int, int]
    addresses: dict[int, Address]


def checked_rank_table(
    comm_name: str, cluster_rank_info: dict[int, int], rank_table: str, own_cluster: int
) -> RankTable:
    """Checks the arguments of ``link``.

    Raises:
        TypeError, ValueError: An argument of the wrong type, or an id that does not fit a uint64.
        LLMException: LLM_PARAM_INVALID for anything else that is wrong.
    """
    check_type("comm_name", comm_name, str)
    check_type("cluster_rank_info", cluster_rank_info, dict)
    check_type("rank_table", rank_table, str)
    cluster_rank_info = {
        check_int("a cluster of cluster_rank_info", cluster_id, UINT64): check_int(
            f"cluster_rank_info[{cluster_id}]", rank, UINT64
        )
        for cluster_id, rank in cluster_rank_info.items()
    }
    if not 1 <= len(comm_name) <= _MAX_NAME:
        raise param_invalid(f"comm_name ({comm_name!r}) must have 1 to {_MAX_NAME} characters")
    ranks = list(cluster_rank_info.values())
    if not _MIN_CLUSTERS <= len(ranks) <= _MAX_CLUSTERS:
        raise param_invalid(f"cluster_rank_info must name 2 to 4 clusters, got {len(ranks)}")
    if ranks != sorted(set(ranks)):
        raise param_invalid(f"the ranks in cluster_rank_info must ascend, got {ranks}")
    if own_cluster not in cluster_rank_info:
        raise param_invalid(f"cluster_rank_info must name this cluster, {own_cluster}, got {list(cluster_rank_info)}")
    addresses = dict(_addresses(rank_table))
    missing = [rank for rank in ranks if rank not in addresses]
    if missing:
        raise param_invalid(f"rank_table has no device with rank_id {missing[0]}")
    return RankTable(dict(cluster_rank_info), {cluster: addresses[rank] for cluster, rank in cluster_rank_info.items()})


def _addresses(rank_table: str) -> Iterator[tuple[int, Address]]:
    """The rank of each device of a table, and where its process listens."""
    try:
        servers = json.loads(rank_table)["server_list"]
        hosts = json.loads(os.environ.get(HOSTS) or "{}")
        first = int(os.environ.get(PORT) or DEFAULT_PORT)
        for server in servers:
            host, own_first = _host(server, hosts, alone=len(servers) == 1, first=first)
            for device in server["device"]:
                port = own_first + int(device["device_id"]) + int(device.get("device_port", 0))
                if not 0 < port < 2**16:
                    raise param_invalid(f"rank_table: rank {device['rank_id']} would listen at port {port}: set {PORT}")
                yield int(device["rank_id"]), (host, port)
    except LLMException:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise param_invalid(f"cannot read rank_table, {HOSTS} or {PORT}: {error!r}") from error


def _host(server: dict[str, Any], hosts: dict[str, str], *, alone: bool, first: int) -> tuple[str, int]:
    """The address of a server, and the first port there."""
    name = str(server["server_id"])
    text = hosts.get(name) or server.get("host_ip")
    if not text:
        text = name if _is_ip(name) else "127.0.0.1" if alone else ""
    host, _, port = str(text).partition(":")
    if not host:
        raise param_invalid(
            f'rank_table: server {name!r} has no address: set {HOSTS} to JSON such as {{{name!r}: "10.0.0.1"}}'
        )
    try:
        return socket.gethostbyname(host), int(port) if port else first
    except OSError as error:
        raise param_invalid(f"rank_table: server {name!r} has no address: {host!r}: {error}; set {HOSTS}") from error


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False
