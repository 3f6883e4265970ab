"""Envs in processes of their own: one that hangs or dies is killed and started again, and no other waits for it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rlvla.config import EnvConfig
from rlvla.rollout.env_server import CLOSE_S
from rlvla.rollout.env_thread import EnvCrashError, EnvThread, NeighbourCrashError
from rlvla.types import Box


class EnvPool:
    """Some envs, some in each process; a process starts when an env of it is first reset, and again after a loss.

    Args:
        config: which env, and how long a call may take.
        num_envs: how many.
        envs_per_process: they go down together; more of them take less memory.
    """

    def __init__(self, config: EnvConfig, num_envs: int, envs_per_process: int = 1) -> None:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError as error:
            raise OSError(f"env processes need Linux 5.3 or later, this is {os.uname().release} ({error})") from error
        self._config, self._envs_per_process = config, envs_per_process
        self._links: list[_Link | None] = [None for _ in range(0, num_envs, envs_per_process)]
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: Any = None
        self._is_closed = False
        self.envs = [EnvThread(partial(self._connect, *divmod(i, envs_per_process))) for i in range(num_envs)]
        """Each played by one episode at a time."""

    def _connect(self, process: int, slot: int) -> RemoteEnv:
        return RemoteEnv(self._config, self.link(process), slot)

    def link(self, process: int) -> _Link:
        """To the process that lives, started if there is none; raises EnvCrashError if that fails."""
        with self._lock:
            if self._is_closed:
                raise EnvCrashError("the envs are closed")
            link = self._links[process]
            if link is None or link.is_lost:
                link = self._links[process] = self._fork()
            return link

    def _fork(self) -> _Link:
        """Start an env process. Raises EnvCrashError when that takes longer than a reset may."""
        if self._server is None or self._server.poll() is not None:
            self._start_server()
        ours, theirs = Pipe()
        try:
            with theirs:
                reduction.send_handle(self._control, theirs.fileno(), None)
            if not ours.poll(self._config.reset_deadline_s):
                raise TimeoutError(f"no process after {self._config.reset_deadline_s:g} s")
            return _Link(ours.recv(), reduction.recv_handle(ours), ours)
        except (OSError, EOFError) as error:
            ours.close()
            self._stop_server()
            raise EnvCrashError(f"cannot start an env process: {type(error).__name__}: {error}") from error

    def _start_server(self) -> None:
        """The process that env processes are forked from: `rlvla.rollout.env_server`, when first needed or lost."""
        self._stop_server()
        self._control, theirs = Pipe()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "rlvla.rollout.env_server", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._control.send((self._config, self._envs_per_process))

    def _stop_server(self, patience_s: float = 0.0) -> None:
        """End it, after a while by force, and with it what it has forked."""
        if self._server is not None:
            self._control.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(patience_s)
            self._server.kill()
            self._server.wait()

    def close(self) -> None:
        """End all processes, those that hang by force, and all threads; calls in flight raise EnvCrashError."""
        with self._lock:
            self._is_closed = True
        links = [link for link in self._links if link is not None]
        for link in links:
            link.end()
        until = time.monotonic() + CLOSE_S + 1
        for link in links:
            link.wait(max(0.0, until - time.monotonic()))
        for env in self.envs:
            env.close()
        self._stop_server(CLOSE_S)


class RemoteEnv:
    """An env in another process; a call blocks the calling thread.

    It raises EnvCrashError for whatever goes wrong there: the simulator raises (with its traceback), the process ends,
    or the call takes longer than its deadline, which kills the process with all envs in it.

    Args:
        config: `deadline_s` and `reset_deadline_s`.
        link: to its process: in one that has been started since, it would be another env.
        slot: its index there.
    """

    def __init__(self, config: EnvConfig, link: _Link, slot: int) -> None:
        self._config, self._call = config, partial(link.call, slot)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """See `protocols.Env`; makes the env first if there is none, which the deadline includes."""
        return self._call(self._config.reset_deadline_s, "reset", seed=seed, options=options)

    def step_chunk(self, actions: np.ndarray) -> Any:
        """See `protocols.Env`."""
        return self._call(self._config.deadline_s, "step_chunk", actions)

    def zoom(self, image: int, bbox: Box) -> np.ndarray:
        """See `protocols.Env`."""
        return self._call(self._config.deadline_s, "zoom", image, bbox)

    def close(self) -> None:
        """Nothing: it lives as long as its process."""


class _Link:
    """The pipe to one env process: any number of threads may call, each waits for its own answer.

    Args:
        pid: for messages: a number that may become somebody else's.
        process: its file descriptor, by which it is killed.
        pipe: ours.
    """

    def __init__(self, pid: int, process: int, pipe: Connection) -> None:
        self._pid, self._process, self._pipe = pid, process, pipe
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # its holder may wait for a process that hangs, hence not the lock to kill it
        self._ids = itertools.count()
        self._waiting: dict[int, Future[tuple[bool, Any]]] = {}
        self._loss: EnvCrashError | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_lost(self) -> bool:
        """Whether the process has ended, or has been killed and is about to."""
        return self._loss is not None

    def call(self, slot: int, deadline_s: float, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an env and wait for what it returns; raises EnvCrashError, see `RemoteEnv`."""
        future: Future[tuple[bool, Any]] = Future()
        with self._lock:
            if self._loss is not None:
                raise type(self._loss)(str(self._loss))
            id_ = next(self._ids)
            self._waiting[id_] = future
        with self._sending, contextlib.suppress(OSError):  # it has just ended, as the reader finds too
            self._pipe.send((slot, id_, method, args, kwargs))
        try:
            has_returned, value = future.result(deadline_s)
        except TimeoutError:
            what = f"{method} took longer than {deadline_s:g} s"
            self._kill(NeighbourCrashError(f"the process was killed: {what} in another env of it"))
            raise EnvCrashError(f"{what}; the process was killed") from None
        if not has_returned:
            raise EnvCrashError(value)
        return value

    def end(self) -> None:
        """Close our direction of the pipe, whereupon the process closes its envs and ends."""
        with self._lock, contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_WR)

    def wait(self, timeout_s: float) -> None:
        """Until the process has ended; it is killed when that takes longer."""
        self._reader.join(timeout_s)
        self._kill(EnvCrashError("the envs are closed"))
        self._reader.join(CLOSE_S)  # a child of the simulator's that outlives it may hold the pipe

    def _kill(self, loss: EnvCrashError) -> None:
        """End the process, also one that is stopped; whoever waits for an answer gets `loss` instead."""
        with self._lock:
            if self._loss is None:
                self._loss = loss
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def _read(self) -> None:
        """Hand each answer to who waits for it, until the process ends."""
        try:
            while True:
                id_, *reply = self._pipe.recv()
                self._waiting.pop(id_).set_result((*reply,))
        except (EOFError, OSError):
            loss = EnvCrashError(f"the env process {self._pid} ended")
        except Exception as error:  # an answer of a type that does not exist here
            loss = EnvCrashError(f"the answer cannot be read: {type(error).__name__}: {error}")
            self._kill(loss)
        with self._lock:
            self._loss = self._loss or loss
            for future in self._waiting.values():
                future.set_exception(self._loss)
            os.close(self._process)
            with self._sending:
                self._pipe.close()
