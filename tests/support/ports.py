"""Ports for servers that a test starts as processes of their own."""

from __future__ import annotations

import random
import socket

# Below what systems hand out for port 0 (Linux: 32768 up, others: 49152 up). A port from there could be handed to
# somebody else between being found free here and being opened by the test's server.
_LOWEST, _BEYOND = 20_000, 32_000


def free_port() -> int:
    """A loopback port that nobody listens on now, and that nobody is given by chance."""
    for port in random.sample(range(_LOWEST, _BEYOND), 200):
        with socket.socket() as probe:
            # As servers do: connections of a server that is gone do not keep its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of 200 ports between {_LOWEST} and {_BEYOND} is free")
