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
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import reduction
from multiprocessing.connection import Connection
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
    """Load the simulator, then fork as asked, until the parent is gone.

    Args:
        descriptor: of a socket, on which the EnvConfig and the number of envs in a process come first, then for each
            child its end of a pipe, on which its pid goes back, and a descriptor of its process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when we end
    control = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        config, num_envs = control.recv()
        preload(config)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing is left of a child that has ended
        while True:
            with Connection(reduction.recv_handle(control)) as pipe:
                if os.fork() == 0:
                    control.close()
                    _run_child(pipe, config, num_envs)


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
        process = os.pidfd_open(os.getpid())  # unlike a number, never somebody else's
        pipe.send(os.getpid())
        reduction.send_handle(pipe, process, None)
        os.close(process)
        serve(pipe, config, num_envs)
        atexit._run_exitfuncs()
        status = 0
    except BaseException:  # must not run on as a second server
        traceback.print_exc()
    finally:
        os._exit(status)


def serve(pipe: Connection, config: EnvConfig, num_envs: int) -> None:
    """Host `num_envs` envs, each with a thread, hence a GL context, of its own, until the pipe ends; then close them.

    An env is made at its first reset, and anew at the first reset after a call that raised. A request is (slot, id,
    method, arguments, keyword arguments), an answer (id, whether the call returned, its value or error as text).
    """
    threads = [ThreadPoolExecutor(1) for _ in range(num_envs)]
    envs: list[Any] = [None] * num_envs
    lock = threading.Lock()

    def answer(*reply: Any) -> None:
        with lock:
            pipe.send(reply)

    def call(slot: int, id_: int, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if envs[slot] is None:
                if method != "reset":
                    raise RuntimeError(f"{method} before reset")
                envs[slot] = make_env(config)
            answer(id_, True, getattr(envs[slot], method)(*args, **kwargs))
        except BaseException as error:  # the one intended catch: whatever a simulator raises, an exit included
            answer(id_, False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            close(slot)

    def close(slot: int) -> None:
        env, envs[slot] = envs[slot], None
        if env is not None:
            with contextlib.suppress(Exception):  # it is given up anyway
                env.close()

    with contextlib.suppress(EOFError, OSError):
        while True:
            slot, *request = pipe.recv()
            threads[slot].submit(call, slot, *request)
    wait([thread.submit(close, slot) for slot, thread in enumerate(threads)], CLOSE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
