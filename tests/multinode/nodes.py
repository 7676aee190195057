"""Nodes of a cluster on one machine: network namespaces, each with its own address, joined by a bridge.

The bridge lives in a namespace too, so that nothing of the machine's own network is touched and addresses can clash
with nobody's. Names carry the process that made them: what a killed test run left is found by its name and removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

PREFIX = "ntpnodes"
INTERFACE = "eth0"
NAME = re.compile(rf"^{PREFIX}-(\d+)-\w+$")


class NoNodes(Exception):
    """This machine or this user may not make network namespaces; the message says why."""


@dataclass(frozen=True)
class Node:
    """One namespace. ``link`` is the bridge's end of its cable."""

    name: str
    address: str
    switch: str
    link: str

    def start(self, command: list[str], *, cwd: str, env: dict[str, str], log: str) -> subprocess.Popen[str]:
        """Start ``command`` on this node, output appended to the file ``log``."""
        with open(log, "a", encoding="utf-8") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=cwd,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """The node's sudden death: SIGKILL to everything on it, oldest (the agent) first, until nothing is left."""
        deadline = time.monotonic() + 20
        while pids := self.processes():
            for pid in sorted(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"processes of {self.name} do not die: {pids}"
            time.sleep(0.05)

    def cut(self) -> None:
        """Pull the cable: packets vanish, no connection is told."""
        ip("-n", self.switch, "link", "set", self.link, "down")

    def mend(self) -> None:
        ip("-n", self.switch, "link", "set", self.link, "up")


@contextlib.contextmanager
def cluster(count: int) -> Iterator[list[Node]]:
    """``count`` nodes that reach one another; all of it, and whatever still runs there, is gone afterwards.

    Raises:
        NoNodes: this machine or this user cannot have them.
    """
    if os.geteuid() != 0:
        raise NoNodes("network namespaces need root")
    remove_leftovers()
    stem = f"{PREFIX}-{os.getpid()}"
    switch = f"{stem}-switch"
    nodes = [Node(f"{stem}-node{k}", f"10.77.0.{k + 1}", switch, f"port{k}") for k in range(count)]
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        for node in nodes:
            ip("netns", "add", node.name)
            peer = ["type", "veth", "peer", "name", INTERFACE, "netns", node.name]
            ip("-n", switch, "link", "add", node.link, *peer)
            ip("-n", switch, "link", "set", node.link, "master", "bridge0", "up")
            ip("-n", node.name, "link", "set", "lo", "up")
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", INTERFACE)
            ip("-n", node.name, "link", "set", INTERFACE, "up")
        yield nodes
    finally:
        for name in [*(node.name for node in nodes), switch]:
            _remove(name)


def remove_leftovers() -> None:
    """Remove what test runs left that were killed themselves: namespaces of our name whose maker is gone."""
    for line in ip("netns", "list").splitlines():
        match = NAME.match(line.split()[0])
        if match and not psutil.pid_exists(int(match[1])):
            _remove(match[0])


def _remove(name: str) -> None:
    with contextlib.suppress(NoNodes):  # it may never have been made
        Node(name, "", "", "").kill()
        ip("netns", "delete", name)


def ip(*arguments: str) -> str:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise NoNodes("the command ip is missing (package iproute2)") from None
    if done.returncode:
        raise NoNodes(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
