"""Clusters of Ray nodes that are processes of their own, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray._raylet import GcsClient

DEADLINE = 600.0  # as long as a busy machine may take


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def ray_start(environment: Mapping[str, str], *options: str) -> Iterator[None]:
    """A node as `ray start` makes it for a user with this environment; killed at the end."""
    call = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(call, env=environment, start_new_session=True, **pipes) as node:
        try:
            said = ""
            while "This command will now block" not in said:
                line = node.stdout.readline()
                assert line, said
                said += line
            yield
        finally:
            os.killpg(node.pid, signal.SIGKILL)


def free_address(host: str) -> str:
    """HOST:PORT with a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return "{}:{}".format(*probe.getsockname())


class Nodes:
    """Nodes of a cluster, each started with `ray start` on an address of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = free_address(self.host(1))

    @staticmethod
    def host(number: int) -> str:
        return f"127.0.0.{number + 1}"

    def start(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start the next node and wait until it is there; the first one is the head."""
        port = self.address.split(":")[1]
        role = [f"--address={self.address}"]
        if not self._started:
            role = ["--head", f"--port={port}", "--include-dashboard=false"]
        number = len(self._started) + 1
        own = f"--node-ip-address={self.host(number)}"
        size = [f"--num-cpus={cpus}", "--object-store-memory=80000000"]
        call = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", own, *size, *role]

        def is_there() -> bool:
            if len(self._started) < number or self._started[-1].poll() is not None:
                del self._started[number - 1 :]  # Ray gives up after 30 s on a busy machine
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                self._started.append(subprocess.Popen(call, start_new_session=True, **quiet))
            return self.host(number) in self._known()

        wait_for(is_there)
        return self._started[-1]

    def _known(self) -> set[str]:
        """Addresses of the nodes that have ever joined."""
        host, port = self.address.split(":")
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))):
                return set()
        nodes = GcsClient(address=self.address).get_all_node_info()
        return {node.node_manager_address for node in nodes.values()}

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()

    def end(self) -> None:
        for node in reversed(self._started):
            self.kill(node)
