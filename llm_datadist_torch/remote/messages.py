# SPDX-License-Identifier: Apache-2.0
"""The messages between two linked processes. Each is decoded by its type before anything looks inside.

A request has a number, which its sender counts up, and the reply repeats it: a reply answers its own request only. Both
processes send requests. ``Release`` and ``Bye`` have no reply.
"""

from typing import Annotated, Literal

import msgspec

PROTOCOL = 4
"""To be raised with every change of a message, or of the size of a staging slot."""

Uint64 = Annotated[int, msgspec.Meta(ge=0)]  # msgpack has no larger numbers
Uint63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # as numpy computes with them
Planes = Annotated[int, msgspec.Meta(gt=0, le=1 << 20)]


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message of the process that calls. All versions of the package can decode it.

    Attributes:
        number: 0, before all other requests.
        protocol: ``PROTOCOL`` of the sender.
        cluster: The cluster of the sender.
        wanted: The cluster that the sender wants to link to, or None for whichever answers.
        group: The name of the communicator that the link belongs to, or "".
        agent: How to reach the NIXL agent of the sender.
    """

    number: int
    protocol: int
    cluster: Uint64 = 0
    wanted: Uint64 | None = None
    group: str = ""
    agent: bytes = b""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message between processes of the same version."""


class Welcome(_Strict, frozen=True):
    """The reply to ``Hello``."""

    number: int
    cluster: Uint64
    agent: bytes


class Ready(_Strict, frozen=True):
    """The sender uses the link from now on, and so may the receiver, which replies with ``Done``."""

    number: int


class Unlink(_Strict, frozen=True):
    """Ends the link. The receiver waits at most ``timeout_ms`` for its own transfers, and replies with ``Done``."""

    number: int
    timeout_ms: int


class Done(_Strict, frozen=True):
    """The reply to a request that succeeded."""

    number: int


class Failed(_Strict, frozen=True):
    """The reply to any request that failed: the name of an LLMStatusCode, and the text of the error."""

    number: int
    code: str
    text: str


class NamedKey(_Strict, frozen=True):
    """The identity of a CacheKey or BlocksCacheKey."""

    kind: Literal["request", "prefix", "blocks"]
    numbers: tuple[Uint64, ...]


class IdKey(_Strict, frozen=True):
    """A row of the cache with this id."""

    cache: int
    row: Uint64


class AddressKey(_Strict, frozen=True):
    """Memory in caches: ``rows`` rows of ``row_bytes`` bytes at each address, of this element type."""

    addresses: list[Uint64]
    row_bytes: Uint64
    rows: Uint64
    dtype: str


class LayoutMessage(_Strict, frozen=True):
    """``layout.Layout``. Planes at equal distances, as in a stacked cache, are sent as the first address, step and count."""

    bases: list[int]
    even: bool
    stride: Uint63
    row_bytes: Uint63
    batch_size: Uint63
    num_tensors: Planes
    dtype: str
    is_blocks: bool
    on_host: bool


class Acquire(_Strict, frozen=True):
    """Asks for a lease of a cache. The number of the request is that of the lease.

    Attributes:
        key: The cache, and the row where the key names one.
        write: Whether the cache will be written.
        known: The id of the cache whose layout the sender knows, or 0.
        forgotten: Whether the sender has forgotten all registrations. See ``Granted.registrations``.
    """

    number: int
    key: NamedKey | IdKey | AddressKey
    write: bool
    known: int
    forgotten: bool


class Granted(_Strict, frozen=True):
    """The reply to ``Acquire``.

    Attributes:
        cache: The id of the cache, or 0 for a range of memory.
        row: The row that the key names.
        layout: Where the cache is, unless the holder knows.
        memory: The number of the registration of each tensor, or one number for all.
        slots: The addresses of the staging slots, if NIXL does not reach the cache.
        registrations: The descriptions of registrations that the holder has not been told yet.
    """

    number: int
    cache: int
    row: Uint64
    layout: LayoutMessage | None
    memory: list[Uint63]
    slots: list[Uint63]
    registrations: list[bytes]


class Plan(_Strict, frozen=True):
    """The bytes that the ``Stage`` requests of a lease will move: arrays of int64. No reply."""

    lease: int
    planes: tuple[Uint64, Uint64]
    rows: bytes
    offsets: bytes
    lengths: bytes


class Stage(_Strict, frozen=True):
    """Copies a piece of the plan between the device and its slot. The reply is ``Done``."""

    number: int
    lease: int
    piece: Uint64
    timeout_ms: int


class Release(_Strict, frozen=True):
    """Ends a lease.

    Attributes:
        lease: The number of the ``Acquire``.
        pulled: The tensors whose row has been read, or None if the transfer failed.
    """

    lease: int
    pulled: list[int] | None


class Bye(_Strict, frozen=True):
    """The sender has ended the link. It still releases the leases that it holds."""


Request = Hello | Ready | Unlink | Acquire | Stage
Reply = Welcome | Done | Failed | Granted
Message = Request | Reply | Plan | Release | Bye
Key = NamedKey | IdKey | AddressKey

_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """The message in bytes.

    Raises:
        ValueError: They are not a message.
    """
    try:
        message: Message = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return message
