# SPDX-License-Identifier: Apache-2.0
"""Who may connect: both ends prove with CURVE that they have the secret. Without a secret, everybody may."""

import functools
import hashlib
import os

import zmq
from zmq.utils.z85 import encode

SECRET = "LLM_DATADIST_SECRET"
"""The environment variable with the secret that all processes share."""

_ZAP_VERSION, _ALLOWED, _REFUSED = b"1.0", b"200", b"400"


@functools.lru_cache(maxsize=2)
def _key_pair(secret: str) -> tuple[bytes, bytes]:
    """The public and the private key of every process that has the secret. Slow on purpose: secrets may be short."""
    private = encode(hashlib.scrypt(secret.encode(), salt=b"llm_datadist_torch", n=1 << 14, r=8, p=1, dklen=32))
    return zmq.curve_public(private), private


def secure(socket: "zmq.Socket[bytes]", *, listens: bool) -> None:
    """Lets a socket talk to processes that have the secret, and to no other. Call it before the socket connects or binds."""
    secret = os.environ.get(SECRET, "")
    if not secret:
        return
    public, private = _key_pair(secret)
    socket.curve_publickey, socket.curve_secretkey = public, private
    if listens:
        socket.curve_server = True
        socket.zap_domain = b"llm_datadist"
    else:
        socket.curve_serverkey = public


class Authenticator:
    """Answers ZeroMQ's question whether a client has the right key (ZAP, ZeroMQ RFC 27).

    Args:
        context: The context whose sockets ask.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """Answers one question."""
        version, number, _, _, _, mechanism, *credentials = self.socket.recv_multipart()
        public, _ = _key_pair(os.environ.get(SECRET, ""))
        allowed = version == _ZAP_VERSION and mechanism == b"CURVE" and [encode(key) for key in credentials] == [public]
        self.socket.send_multipart([_ZAP_VERSION, number, _ALLOWED if allowed else _REFUSED, b"", b"", b""])
