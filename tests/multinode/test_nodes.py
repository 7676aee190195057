"""The nodes themselves: they reach one another, die and are cut, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multinode.nodes import PREFIX, Node, NoNodes, cluster, ip, remove_leftovers

pytestmark = [pytest.mark.multinode, pytest.mark.long]
DIAL = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=2)"
LISTEN = "import socket, time; s = socket.create_server(('', 7000)); print('up', flush=True); time.sleep(60)"


def reaches(node: Node, address: str) -> bool:
    dial = ["ip", "netns", "exec", node.name, sys.executable, "-c", DIAL, address]
    return subprocess.run(dial, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.timeout(60)
def test_nodes_reach_one_another_until_a_cable_is_cut(nodes: list[Node], tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = nodes[0].start([sys.executable, "-c", LISTEN], cwd="/", env=dict(os.environ), log=str(log))
    while "up" not in (log.read_text() if log.exists() else ""):
        assert server.poll() is None
    assert reaches(nodes[3], nodes[0].address)
    nodes[3].cut()
    assert not reaches(nodes[3], nodes[0].address)
    assert reaches(nodes[2], nodes[0].address)
    nodes[3].mend()
    deadline = time.monotonic() + 20  # a switch takes a moment until it serves a port again
    while not reaches(nodes[3], nodes[0].address):
        assert time.monotonic() < deadline
    nodes[0].kill()
    assert server.wait(10) == -9
    assert not reaches(nodes[3], nodes[0].address)


@pytest.mark.timeout(60)
def test_what_a_killed_test_run_left_is_removed(four_nodes: list[Node]) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    leftover = Node(f"{PREFIX}-{gone.pid}-node0", "", "", "")
    ip("netns", "add", leftover.name)
    sleeper = subprocess.Popen(["ip", "netns", "exec", leftover.name, "sleep", "600"])
    while sleeper.pid not in leftover.processes():
        assert sleeper.poll() is None
    remove_leftovers()
    assert sleeper.wait(10) == -9
    left = ip("netns", "list")
    assert leftover.name not in left
    assert four_nodes[0].name in left, "those of a living test run stay"


def test_it_is_said_why_there_are_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoNodes, match="need root"), cluster(2):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoNodes, match="iproute2" if os.geteuid() == 0 else "root"), cluster(2):
        pass
