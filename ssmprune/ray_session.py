"""Ray for the time of a search or a training run: started on this machine, or a cluster joined."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import grpc
import ray
from ray.exceptions import RayError

try:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
except ImportError:  # a Ray that knows no tokens
    AuthenticationTokenLoader = None

from ssmprune.errors import RunError, UsageError
from ssmprune.machine import cpu_count

_ANSWER_SECONDS = 10.0
_MOST_STARTS = 3  # of Ray, which gives itself 30 s each time, too little on a machine that is busy
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest name of a socket
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


def check_ray(address: str | None) -> None:
    """Refuse what Ray cannot be started with, or an address where it is not; nothing is written.

    Raises:
        UsageError: The temporary directory does not do for Ray, or nothing answers at the address.
    """
    if ray.is_initialized():
        return
    with _tokens(is_own=address is None):
        if address is None:
            _check_temporary_directory()
        else:
            _check_answers(address)


@contextmanager
def running_ray(address: str | None, workers: int) -> Iterator[None]:
    """Ray for a while; one that runs in this process already is used and stays.

    What Ray says goes to standard error; standard output belongs to the caller.

    Args:
        address: A Ray cluster; with None Ray is started on this machine, whatever other Ray runs
            here or is named by RAY_ADDRESS.
        workers: As many CPUs as Ray offers at least where it is started.

    Raises:
        UsageError: As `check_ray` raises it, or the cluster cannot be joined.
        RunError: Ray does not start.
    """
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        check_ray(address)
        with _tokens(is_own=address is None):
            if address is None:
                _start(workers)
            else:
                _join(address)
            try:
                yield
            finally:
                ray.shutdown()


@contextmanager
def _tokens(*, is_own: bool) -> Iterator[None]:
    """Let this process and its children use the token that Ray 2.60 and later ask for.

    A Ray of our own has a secret of its own, unless the user has one: nothing is written into the
    home directory, where there may be none. At a cluster the user's token is shown.
    """
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    if before["RAY_AUTH_MODE"] not in (None, "token"):
        yield
        return
    if is_own and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if is_own or _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    _read_tokens_again()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_tokens_again()


def _has_token() -> bool:
    """Whether Ray finds a token in the environment or the home directory."""
    if AuthenticationTokenLoader is None:
        return False
    _read_tokens_again()
    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except RayError:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        raise UsageError(
            f"RAY_AUTH_TOKEN_PATH must be a file with a Ray cluster's token, got {path!r}, which "
            "cannot be read or is empty; name another, or unset it."
        ) from None


def _metadata() -> list[tuple[str, str]]:
    """What shows the token to a cluster, if this process is to show one."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or not _has_token():
        return []
    return list(AuthenticationTokenLoader.instance().get_token_for_http_header().items())


def _read_tokens_again() -> None:
    """Let Ray look at the environment again, which it remembers."""
    if AuthenticationTokenLoader is not None:
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")


def log_directory() -> str:
    """Where the Ray that was last started on this machine keeps its logs."""
    return f"{_temporary_directory()[0]}/ray/session_latest/logs"


def last_line(fault: BaseException) -> str:
    """What a fault of Ray comes down to, at the end of its account."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[-1].rstrip(".")


def _start(workers: int) -> None:
    cpus, reason = max(cpu_count(), workers), ""
    for _ in range(_MOST_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                runtime_env=_python_of_workers(),
                **_QUIET,
            )
            return
        except (OSError, ValueError) as fault:
            ray.shutdown()
            raise RunError(
                f"Ray must start on this machine, but does not: {last_line(fault)}; its logs are "
                f"in {log_directory()}."
            ) from None
        except Exception as fault:  # noqa: BLE001 - Ray raises nothing narrower
            ray.shutdown()
            reason = last_line(fault)
    raise RunError(
        f"Ray must start on this machine, but does not: {reason}; try again when the machine "
        "is less busy."
    )


def _python_of_workers() -> dict[str, str] | None:
    """How a shell that Ray begins workers with is to name this Python; None where any way does.

    Ray does not quote it, so that no worker would begin in a virtual environment below a folder
    with a space in its name, and a search would wait for ever.
    """
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


def _join(address: str) -> None:
    try:
        ray.init(address=address, runtime_env=_python_of_workers(), **_QUIET)
    except (ConnectionError, ValueError, RuntimeError, RayError) as fault:
        if "InvalidAuthToken" in f"{fault} {fault.__cause__}":
            raise _refused_token(address) from None
        raise _no_cluster(address, last_line(fault)) from None


def _check_answers(address: str) -> None:
    """Ask at `HOST:PORT` whether a cluster is there and takes the token; Ray tries for long.

    Other addresses, such as `auto`, are left to Ray.
    """
    parts = re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address)
    if parts is None:
        return
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as fault:
        raise _no_cluster(address, f"nothing answers there ({fault})") from None
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", metadata=_metadata(), timeout=_ANSWER_SECONDS)
        except grpc.RpcError as fault:
            if fault.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise _refused_token(address) from None


def _no_cluster(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--address must be that of a running Ray cluster, got {address!r}: {reason}; start one "
        "with `ray start --head`, or leave it out."
    )


def _refused_token(address: str) -> UsageError:
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        found = f"RAY_AUTH_MODE={mode} forbids it"
    else:
        found = "the one that is found here is another" if _has_token() else "none is found here"
    return UsageError(
        f"the cluster at --address {address} must be shown its token, but {found}; copy "
        "~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN_PATH to a copy, and leave "
        "RAY_AUTH_MODE unset."
    )


def _temporary_directory() -> tuple[str, str]:
    """Where Ray keeps its files, and the environment variable that says so."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    name = next((name for name in names if name in os.environ), names[-1])
    return os.environ.get(name, "/tmp"), name


def _check_temporary_directory() -> None:
    """Refuse a directory in which Ray's sockets cannot be."""
    path, name = _temporary_directory()
    session = f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    longest, size = _SOCKET_BYTES - len(session), len(os.fsencode(path))
    rule = found = ""
    if not path.isascii():
        rule = "have a name of ASCII characters"
    elif not path.startswith("/"):
        rule = "be an absolute path"
    elif size > longest:
        rule, found = f"be at most {longest} bytes long", f", which has {size}"
    else:
        try:
            _try_to_write(Path(path, "ray"))
        except OSError as fault:
            rule, found = "be a directory that can be written", f" ({fault.strerror})"
    if rule:
        raise UsageError(
            f"{name} must {rule}, as Ray keeps its sockets there, got {path!r}{found}; set it to "
            f"another directory, such as `{name}=/tmp`."
        )


def _try_to_write(directory: Path) -> None:
    """Try whether files can be made in a directory, or the directory itself."""
    there = next(place for place in (directory, *directory.parents) if place.exists())
    tempfile.TemporaryDirectory(dir=there).cleanup()
