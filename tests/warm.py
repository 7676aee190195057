"""Starts the project's commands as processes of their own that need not load torch again.

What :func:`start` gives is a real process with its own pid, environment, folder, output files, signals and exit code,
and torchrun's ranks are its children as ever. Only the start of the interpreter and the imports, 5 s of a core each
time, are shared: it is forked from the server that :mod:`tests.gloo` forks ranks from. What that leaves out (the
imports themselves, the interpreter's own end, another hash seed in each process) is for the tests that start
``sys.executable``, one or more for each command.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing.process
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

from tests.gloo import CONTEXT, start_server

HANDLED = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]


class Started:
    """A running command, with those methods of ``subprocess.Popen`` that tests use.

    Attributes:
        returncode: once it has ended; negative for a signal.
    """

    def __init__(
        self, arguments: list[str], cwd: Path, environment: Mapping[str, str], out: Path | None, err: Path | None
    ) -> None:
        self.args = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="warm_")
        self._out, self._err = out or Path(self._folder.name, "out"), err or Path(self._folder.name, "err")
        # A daemon, so that one that a failing test leaves behind does not hold up the end of pytest.
        self._process = CONTEXT.Process(
            target=_become,
            args=(arguments, str(cwd), dict(environment), str(self._out), str(self._err)),
            daemon=True,
        )
        start_server()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and what it has written to stdout and stderr."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: list[str], *, cwd: Path, env: Mapping[str, str], out: Path | None = None, err: Path | None = None
) -> Started:
    """``python ARGUMENTS`` (a script or ``-m MODULE``), output appended to the files ``out`` and ``err``."""
    return Started(arguments, cwd, env, out, err)


def run(
    arguments: list[str], *, cwd: Path, env: Mapping[str, str], timeout: float, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end, as ``subprocess.run`` does it.

    Args:
        cold: with an interpreter of its own, as a user starts it.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it is killed then.
    """
    if cold:
        return subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
    process = start(arguments, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


def _become(arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> NoReturn:
    """In the new process: be ``python ARGUMENTS``."""
    multiprocessing.current_process()._config["daemon"] = False  # it may start readers
    for path, number in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    SubprocessHandler._popen = _fork_rank  # torchrun's ranks need not load torch either
    _leave(lambda: _execute(arguments, cwd, environment))


def _execute(arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """What the interpreter does once it has started."""
    os.chdir(cwd)
    multiprocessing.process.ORIGINAL_DIR = cwd
    os.environ.clear()
    os.environ.update(environment)
    threads = int(environment.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    if threads > 1:
        torch.set_num_threads(threads)
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    if arguments[0] == "-m":
        sys.path[:0] = [cwd, *places]
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0] = [str(Path(arguments[0]).resolve().parent), *places]
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _leave(work: Callable[[], None]) -> NoReturn:
    """Do the work and end the process as the interpreter would, with the exit code that it would give."""
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    code = 0
    try:
        work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


class _ForkedRank(subprocess.Popen[bytes]):
    """torchrun's child, by fork alone instead of fork and exec."""

    def _execute_child(self, args: tuple[str, ...], *more: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchrun has threads: none holds what a rank needs
            self.pid = os.fork()
        self._child_created = True
        if self.pid == 0:
            os.setsid()
            atexit._clear()
            for number in HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            words = [word for word in args[1:] if word != "-u"]
            _leave(lambda: _execute(words, os.getcwd(), self.rank_environment))

    rank_environment: dict[str, str]


def _fork_rank(handler: SubprocessHandler, args: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
    assert handler._stdout is None and handler._stderr is None, "torchrun --redirects is not taken over"
    _ForkedRank.rank_environment = env
    return _ForkedRank(args)
