"""One job of several nodes: a torchrun on each, as docs/CLUSTER.md says, and what tests ask of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nt_pretrain.observe.rundir import RunDir, Status
from tests.multinode.nodes import INTERFACE, Node
from tests.train import launches

PORT = 29400
# A silent node counts as gone after 6 s (by default 15): few, but enough for a machine with other work.
CONF = "keep_alive_interval=1,keep_alive_max_attempt=6,last_call_timeout=3,read_timeout=20"


@dataclass
class Job:
    """The same command on every node; the run directory is ``folder``, console.log of node k is console_k.log."""

    nodes: list[Node]
    folder: Path
    options: list[str]
    nnodes: str = "4"
    max_restarts: int = 3
    environment: dict[str, str] = field(default_factory=lambda: {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    agents: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def command(self, number: int) -> list[str]:
        host = "true" if number == 0 else "false"
        return [
            *[sys.executable, "-m", "torch.distributed.run"],
            *["--nnodes", self.nnodes, "--nproc-per-node", "1", "--max-restarts", str(self.max_restarts)],
            *["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.nodes[0].address}:{PORT}"],
            *["--rdzv-conf", f"is_host={host},{CONF}", "--local-addr", self.nodes[number].address],
            *["launch/pretrain.py", launches.TINY, f"run.dir={self.folder.parent}", f"run.name={self.folder.name}"],
            *["run.threads_per_rank=1", *self.options],
        ]

    def start(self, *numbers: int) -> None:
        """Start the torchrun of these nodes; of all without arguments."""
        self.folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE} | self.environment
        for number in numbers or range(len(self.nodes)):
            self.agents[number] = self.nodes[number].start(
                self.command(number), cwd=str(launches.ROOT), env=env, log=str(self.log(number))
            )

    def log(self, number: int) -> Path:
        return self.folder / f"console_{number}.log"

    def text(self, number: int) -> str:
        return self.log(number).read_text()

    def kill_node(self, number: int) -> None:
        """Agent and rank of a node, at once and without a word."""
        self.nodes[number].kill()
        assert self.agents[number].wait(20) == -signal.SIGKILL

    def wait_for_step(self, step: int, *, timeout: float = 150) -> None:
        deadline = time.monotonic() + timeout
        while launches.last_step(self.folder) < step:
            assert time.monotonic() < deadline, f"step {step} not reached within {timeout:.0f} s:\n{self.tails()}"
            assert any(agent.poll() is None for agent in self.agents.values()), f"ended early:\n{self.tails()}"
            time.sleep(0.02)

    def wait_for_resume(self, count: int = 1, *, timeout: float = 150) -> None:
        """Wait until the run has been started again ``count`` times and has made a step since.

        A run that dies before its first checkpoint starts again from step 0.
        """
        deadline = time.monotonic() + timeout
        while True:
            kinds = [json.loads(line) for line in RunDir(self.folder).events.read_text().splitlines()]
            resumed = [event["step"] for event in kinds if event["kind"] in ("start", "resume")]
            if len(resumed) > count and launches.last_step(self.folder) > resumed[-1]:
                return
            assert time.monotonic() < deadline, f"not resumed within {timeout:.0f} s:\n{self.tails()}"
            time.sleep(0.05)

    def wait_for_end(self, *numbers: int, timeout: float = 200) -> dict[int, int]:
        """Exit codes of the torchruns of these nodes; of all without arguments."""
        deadline = time.monotonic() + timeout
        codes = {}
        for number in numbers or self.agents:
            try:
                codes[number] = self.agents[number].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"node {number} has not ended in {timeout:.0f} s:\n{self.tails()}") from None
        return codes

    def finish(self, *numbers: int, timeout: float = 200) -> None:
        """Wait for the end of a job that finishes."""
        codes = self.wait_for_end(*numbers, timeout=timeout)
        assert set(codes.values()) == {0}, f"exit codes {codes}:\n{self.tails()}"

    def wait_for_state(self, state: str, *, timeout: float) -> Status:
        """The status once it has this state."""
        deadline = time.monotonic() + timeout
        while (status := RunDir(self.folder).read_status()) is None or status.state != state:
            assert time.monotonic() < deadline, f"not {state} within {timeout:.0f} s: {status}\n{self.tails()}"
            time.sleep(0.05)
        return status

    def tails(self) -> str:
        parts = []
        for number in self.agents:
            parts += [f"--- node {number}", *self.text(number).splitlines()[-40:]]
        return "\n".join(parts)

    def stop(self) -> None:
        """Whatever still runs on the nodes ends."""
        for node in self.nodes:
            node.kill()
        for agent in self.agents.values():
            agent.wait(20)
