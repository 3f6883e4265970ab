"""An env, here or in a process of its own, and the thread that drives it or waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rlvla.plugins import PluginError
from rlvla.protocols import EnvCrashError, Simulator

T = TypeVar("T")


class NeighbourCrashError(EnvCrashError):
    """Its process was killed because another env in it hung, which says nothing about this one."""


class EnvThread:
    """An env and the one thread that drives it, since a GL context belongs to a thread; others run meanwhile."""

    def __init__(self, make_env: Callable[[], Simulator]) -> None:
        self._make_env = make_env
        self._env: Simulator | None = None
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._busy_since: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds since the call that its thread is in, 0 where there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def call(self, function: Callable[[Simulator], T]) -> T:
        """Run `function(env)` in the env's thread.

        Raises:
            EnvCrashError: the simulator failed; the next call makes a new env.
            PluginError: a tool failed, and the env stays.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, function)

    def _run(self, function: Callable[[Simulator], T]) -> T:
        self._busy_since = time.monotonic()
        try:
            if self._env is None:
                self._env = self._make_env()
            return function(self._env)
        except PluginError:  # of a tool, not of the simulator
            raise
        except EnvCrashError:
            self._env = None
            raise
        except Exception as error:  # the one intended catch: whatever a simulator raises
            self._env = None
            raise EnvCrashError(f"{type(error).__name__}: {error}") from error
        finally:
            self._busy_since = None

    def close(self) -> None:
        """Close the env in its thread and end the thread."""
        if self._env is not None:
            self._executor.submit(self._env.close).result()
        self._executor.shutdown()
