"""The far side of `env_process`: a server that has the simulator loaded and forks, and what runs in its children.

`python -m rlvla.rollout.env_server FD` is started by `env_process` only. Children are forked from a process that has
imported everything and started nothing, so that they begin in milliseconds and share its memory. The forkserver of
`multiprocessing` does not serve here: it preloads without our `sys.path`, and has each child import the parent's main
module, which in a Ray actor is Ray.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import inspect
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from pydantic_core import to_jsonable_python

from rlvla.config import EnvConfig
from rlvla.plugins import import_named, naming
from rlvla.protocols import Env

CLOSE_S = 5.0
"""How long the envs of a process may take to close, seconds; then it ends without."""
_PR_SET_PDEATHSIG = 1

Order = tuple[int, int]
"""To the server: the number of a child, which no other one has had, and how many envs it is to be started with: the end
of its pipe comes next, and its pid goes back. Or 0: it is to be killed, unless it has ended."""
Request = tuple[int, str, tuple[Any, ...], dict[str, Any]]
"""Message id, name of the env's method, its arguments."""
Answer = Callable[[int, bool, Any], None]
"""(message id, whether the call returned, what it returned or the text of what it raised)."""


def make_env(config: EnvConfig) -> Env:
    """The bare env behind a Gymnasium id.

    Raises:
        ModuleNotFoundError: `env.imports` or `env.id` names a module that is not there.
        ImportError: the simulator is not installed.
        FileNotFoundError: its files are not.
        PluginError: the id is not registered, or its constructor raised anything else; the message names it.
    """
    for key, module in _modules(config):
        try:
            with naming(f"{key} {module!r}, while it was imported,", but=(ImportError,)):
                import_named(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a missing dependency of the module, not a missing module
            raise ModuleNotFoundError(
                f"{key} names {module!r}, and there is no module {error.name!r}: install it, start in its folder, or "
                "add that to PYTHONPATH"
            ) from error
    not_here = (ImportError, FileNotFoundError)  # without which `--dry-run` goes on
    with naming(f"env.id {config.id!r} with env.kwargs {config.kwargs}", but=not_here):
        return gymnasium.make(config.id, disable_env_checker=True, **config.kwargs).unwrapped  # type: ignore[return-value]


def _modules(config: EnvConfig) -> list[tuple[str, str]]:
    """(key that names it, module) of all whose import registers ids."""
    module = config.id.rpartition(":")[0]
    return [("env.imports", name) for name in config.imports] + ([("env.id", module)] if module else [])


def made_with(env: Any) -> dict[str, Any]:
    """All arguments that `make_env` made an env with, JSON-able: those given, those registered, and the defaults."""
    bound = inspect.signature(_creator(env.spec.entry_point)).bind(**env.spec.kwargs)
    bound.apply_defaults()
    # A function counts by its type: its own text holds an address, which is another one in each process.
    return to_jsonable_python(bound.arguments, fallback=lambda value: type(value).__name__)


def sizes_without_simulator(config: EnvConfig) -> dict[str, Any]:
    """What `VLAEnv.sizes` says of an env that cannot be made here; nothing where its class does not say or load."""
    try:
        spec = gymnasium.spec(config.id.rpartition(":")[2])
        sizes = getattr(_creator(spec.entry_point), "sizes", None)
    except (ImportError, gymnasium.error.Error):
        return {}
    return {} if sizes is None else sizes(**{**spec.kwargs, **config.kwargs})


def _creator(entry_point: Any) -> Any:
    """What Gymnasium makes an env with; mostly its class."""
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def main(descriptor: int) -> None:
    """Load the simulator, then fork and kill children as asked, until the parent is gone.

    Kill as well, since a pid is a child's for as long as nobody has reaped it: only who reaps knows for how long.

    Args:
        descriptor: of a socket, on which the EnvConfig comes first, then orders.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when we end
    signal.signal(signal.SIGCHLD, lambda *_: None)  # that it came is read from the pipe
    ended, wakeup = os.pipe()
    for end in (ended, wakeup):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    control = Connection(descriptor)
    pids: dict[int, int] = {}
    with contextlib.suppress(EOFError, OSError):
        config: EnvConfig = control.recv()
        preload(config)
        while True:
            select.select([control, ended], [], [])
            _reap(ended, pids)
            if not control.poll():
                continue
            order: Order = control.recv()
            child, num_envs = order
            if not num_envs:
                if child in pids:
                    os.kill(pids[child], signal.SIGKILL)
                continue
            pipe = reduction.recv_handle(control)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                control.close()
                os.close(ended)
                os.close(wakeup)
                _run_child(Connection(pipe), config, num_envs)
            os.close(pipe)
            pids[child] = pid
            control.send(pid)


def _reap(ended: int, pids: dict[int, int]) -> None:
    """Forget the children that have ended; only then may their pids become somebody else's."""
    with contextlib.suppress(BlockingIOError):
        os.read(ended, 4096)
    for child, pid in list(pids.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del pids[child]


def preload(config: EnvConfig) -> None:
    """Import what the env's constructor needs; what fails here fails again where an env is made, and is told there."""
    with contextlib.suppress(Exception):
        for _, module in _modules(config):
            import_named(module)
        name = config.id.rpartition(":")[2]
        # Optional: of envs whose constructor imports more than their module does.
        if load := getattr(_creator(gymnasium.spec(name).entry_point), "preload", None):
            load(**config.kwargs)


def _run_child(pipe: Connection, config: EnvConfig, num_envs: int) -> None:
    """Serve, then end at once, without what the server would do at its end."""
    status = 1
    try:
        atexit._clear()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # With the server, which ends with the parent: what is stopped or hangs would not see the end of its pipe.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        faulthandler.enable()
        np.random.seed()  # every child has the server's state otherwise
        serve(pipe, config, num_envs)
        atexit._run_exitfuncs()
        status = 0
    except BaseException:  # must not run on as a second server
        traceback.print_exc()
    finally:
        os._exit(status)


def serve(pipe: Connection, config: EnvConfig, num_envs: int) -> None:
    """Host `num_envs` envs, each with a thread, hence a GL context, of its own, until the pipe ends; then close them.

    A request is (slot, *Request), an answer what `Answer` takes.
    """
    queues: list[SimpleQueue[Request | None]] = [SimpleQueue() for _ in range(num_envs)]
    lock = threading.Lock()

    def answer(*reply: Any) -> None:
        with lock:
            pipe.send(reply)

    threads = [threading.Thread(target=drive, args=(config, queue, answer), daemon=True) for queue in queues]
    for thread in threads:
        thread.start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            slot, *request = pipe.recv()
            queues[slot].put((*request,))
    for queue in queues:
        queue.put(None)
    end = time.monotonic() + CLOSE_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def drive(config: EnvConfig, queue: SimpleQueue[Request | None], answer: Answer) -> None:
    """Serve one env: made at its first reset, and anew at the first reset after a call that raised."""
    env: Any = None
    while (request := queue.get()) is not None:
        id_, method, args, kwargs = request
        try:
            if env is None and method == "reset":
                env = make_env(config)
            if env is None:
                raise RuntimeError(f"{method} before reset")
            answer(id_, True, getattr(env, method)(*args, **kwargs))
        except BaseException as error:  # the one intended catch: whatever a simulator raises, an exit included
            answer(id_, False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            _close(env)
            env = None
    _close(env)


def _close(env: Any) -> None:
    if env is not None:
        with contextlib.suppress(Exception):  # it is given up anyway
            env.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
