"""Envs in processes of their own: one that hangs or dies is killed and started again, and no other waits for it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
        self._server = _Server(config)
        starts = range(0, num_envs, envs_per_process)
        self._processes = [_Process(self._server, min(envs_per_process, num_envs - start)) for start in starts]
        self.envs = [
            EnvThread(partial(RemoteEnv, config, self._processes[i // envs_per_process], i % envs_per_process))
            for i in range(num_envs)
        ]
        """Each played by one episode at a time."""

    def close(self) -> None:
        """End all processes, those that hang by force, and all threads; calls in flight raise EnvCrashError."""
        for process in self._processes:
            process.end()
        until = time.monotonic() + CLOSE_S + 1
        for process in self._processes:
            process.wait(max(0.0, until - time.monotonic()))
        for env in self.envs:
            env.close()
        self._server.close()


class RemoteEnv:
    """An env in another process; a call blocks the calling thread.

    It raises EnvCrashError for whatever goes wrong there: the simulator raises (with its traceback), the process ends,
    or the call takes longer than its deadline, which kills the process with all envs in it.

    Args:
        config: `deadline_s` and `reset_deadline_s`.
        process: which hosts it.
        slot: its index there.
    """

    def __init__(self, config: EnvConfig, process: _Process, slot: int) -> None:
        self._config, self._slot = config, slot
        self._link = process.link()

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

    def _call(self, deadline_s: float, method: str, *args: Any, **kwargs: Any) -> Any:
        # Of the process in which it was reset: in one that has been started since, it would be another env.
        return self._link.call(deadline_s, self._slot, method, *args, **kwargs)


class _Server:
    """The process that env processes are forked from: `rlvla.rollout.env_server`, started when first needed or lost."""

    def __init__(self, config: EnvConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # apart, since a process that hangs is killed while another one starts
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Any = None
        self._children = itertools.count()

    def fork(self, num_envs: int) -> _Link:
        """Start an env process. Raises EnvCrashError when that takes longer than a reset may."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            ours, theirs = Pipe()
            child = next(self._children)
            try:
                with self._sending:
                    self._control.send((child, num_envs))
                    reduction.send_handle(self._control, theirs.fileno(), None)
                if not self._control.poll(self._config.reset_deadline_s):
                    raise TimeoutError(f"no process after {self._config.reset_deadline_s:g} s")
                return _Link(self._control.recv(), ours, kill=partial(self._kill, child))
            except (OSError, EOFError) as error:
                ours.close()
                self._stop()
                raise EnvCrashError(f"cannot start an env process: {type(error).__name__}: {error}") from error
            finally:
                theirs.close()

    def _kill(self, child: int) -> None:
        """End an env process, also one that is stopped, if it has not ended: with a server that is lost it has."""
        with self._sending, contextlib.suppress(OSError):
            self._control.send((child, 0))

    def _start(self) -> None:
        self._stop()
        control, theirs = Pipe()
        command = [sys.executable, "-m", "rlvla.rollout.env_server", str(theirs.fileno())]
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        control.send(self._config)
        with self._sending:
            self._control = control

    def _stop(self) -> None:
        if self._process is not None:
            self._hang_up()
            self._process.kill()
            self._process.wait()

    def _hang_up(self) -> None:
        with self._sending:
            self._control.close()

    def close(self) -> None:
        """End it, with what it has forked."""
        with self._lock:
            if self._process is not None:
                self._hang_up()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(CLOSE_S)
            self._stop()


class _Process:
    """An env process and its successors after losses."""

    def __init__(self, server: _Server, num_envs: int) -> None:
        self._server, self._num_envs = server, num_envs
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._is_closed = False

    def link(self) -> _Link:
        """To the process that lives, started if there is none; raises EnvCrashError if that fails."""
        with self._lock:
            if self._is_closed:
                raise EnvCrashError("the envs are closed")
            if self._link is None or self._link.is_lost:
                self._link = self._server.fork(self._num_envs)
            return self._link

    def end(self) -> None:
        """Ask it to close its envs and end."""
        with self._lock:
            self._is_closed = True
            if self._link is not None:
                self._link.end()

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; it is killed when that takes longer."""
        if self._link is not None:
            self._link.wait(timeout_s)


class _Link:
    """The pipe to one env process: any number of threads may call, each waits for its own answer."""

    def __init__(self, pid: int, pipe: Connection, kill: Callable[[], None]) -> None:
        self._pid, self._pipe, self._end_by_force = pid, pipe, kill
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

    def call(self, deadline_s: float, slot: int, method: str, *args: Any, **kwargs: Any) -> Any:
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
                self._end_by_force()

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
            with self._sending:
                self._pipe.close()
