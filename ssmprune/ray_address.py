"""Whether something answers at the address of a Ray cluster, which Ray itself tries for minutes."""

from __future__ import annotations

import re
import socket

_SECONDS = 10.0


def check_answers(address: str) -> None:
    """Connect to `HOST:PORT` and hang up; other addresses, such as `auto`, are left to Ray.

    Raises:
        ConnectionError: Nothing answers.
    """
    parts = re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address)
    if parts is None:
        return
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=_SECONDS).close()
    except (OSError, OverflowError) as fault:
        raise ConnectionError(f"nothing answers there ({fault})") from None
