# SPDX-License-Identifier: Apache-2.0
"""The roles, ids and addresses of linked processes."""

import ipaddress

from .checks import UINT64, as_int, check_int, check_type
from .status import NamedIntEnum, param_invalid

DEFAULT_PORT = 26000
"""The port of an address in ``listen_ip_info`` that names none, as in LLM-DataDist's samples."""

Address = tuple[str, int]


class LLMRole(NamedIntEnum):
    """The role of a process. Recorded: a process of any role may link, listen, pull and push."""

    PROMPT = 1
    DECODER = 2
    MIX = 3


class LLMClusterInfo:
    """A cluster to link to, or to unlink from. Its addresses are IPv4.

    Attributes:
        local_ip_info_list: What ``append_local_ip_info`` was given. Recorded, not used.
        remote_ip_info_list: What ``append_remote_ip_info`` was given: where the cluster listens, as ``(ip, port)``.
    """

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | int | None = None
        self.local_ip_info_list: list[Address] = []
        self.remote_ip_info_list: list[Address] = []

    @property
    def remote_cluster_id(self) -> int | None:
        """The id of the cluster, a uint64."""
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, remote_cluster_id: int) -> None:
        self._remote_cluster_id = check_int("remote_cluster_id", remote_cluster_id, UINT64)

    @property
    def remote_role_type(self) -> LLMRole | int | None:
        """The role of the cluster. Recorded, not used."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, remote_role_type: LLMRole | int) -> None:
        if as_int(remote_role_type) is None:
            check_type("remote_role_type", remote_role_type, LLMRole, int)
        self._remote_role_type = remote_role_type

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        """Adds an address of this process.

        Args:
            ip: The address as text, or as its number.
            port: The port.

        Raises:
            TypeError: An argument of the wrong type.
            ValueError: A port that does not fit a uint16.
            LLMException: LLM_PARAM_INVALID for an ip that is not IPv4.
        """
        self.local_ip_info_list.append(checked_address(ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        """Adds an address where the cluster listens. See ``append_local_ip_info``."""
        self.remote_ip_info_list.append(checked_address(ip, port))


def checked_address(ip: str | int, port: int) -> Address:
    """An address. Raises the errors of ``LLMClusterInfo.append_local_ip_info``."""
    number = as_int(ip)
    if number is None:
        check_type("ip", ip, str, int)
    port = check_int("port", port, (0, 2**16 - 1))
    try:
        return str(ipaddress.IPv4Address(ip if number is None else number)), port
    except ValueError as error:
        raise param_invalid(f"ip ({ip!r}) must be an IPv4 address: {error}") from error


def parse_listen_ip_info(listen_ip_info: str) -> list[Address]:
    """The addresses in ``listen_ip_info``: "ip:port" or "ip", several separated by ";".

    Raises:
        LLMException: LLM_PARAM_INVALID for anything else.
    """
    addresses = []
    for text in filter(None, listen_ip_info.split(";")):
        ip, _, port = text.strip().partition(":")
        if port and not (port.isascii() and port.isdigit() and int(port) < 2**16):
            raise param_invalid(f"listen_ip_info ({listen_ip_info!r}): the port of {text!r} must be in [0, 65535]")
        addresses.append(checked_address(ip, int(port) if port else DEFAULT_PORT))
    return addresses
