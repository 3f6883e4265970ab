"""Envs in processes that are killed, stopped or raise, for real and by process id: at reset, step and zoom."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rlvla.config import EnvConfig
from rlvla.policies.thinker.deciding import Decider
from rlvla.rollout.env_process import EnvPool, RemoteEnv
from rlvla.rollout.env_thread import EnvCrashError, EnvThread
from rlvla.types import EndReason, Trajectory
from tests.look_then_act import assert_same_play, decider_of, episode, play
from tests.unit.faulty_env import meet, plant

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 4.0
"""Far above what a healthy call takes on a busy machine."""


@pytest.fixture(scope="module")
def decider(tiny_policy: Path) -> Decider:
    return decider_of(tiny_policy)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnvConfig:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    # A reset of a new process imports the env.
    return EnvConfig(
        id="lab/Faulty-v0",
        imports=("faulty_env",),
        kwargs={"folder": str(tmp_path)},
        deadline_s=DEADLINE_S,
        reset_deadline_s=60.0,
        max_attempts=3,
    )


@contextmanager
def opened(config: EnvConfig, num_envs: int, envs_per_process: int = 1) -> Iterator[EnvPool]:
    """A pool of which no process is left at the end, also when a test has failed."""
    before = set(psutil.Process().children(recursive=True))
    pool = EnvPool(config, num_envs, envs_per_process)
    try:
        yield pool
    finally:
        started = [child for child in psutil.Process().children(recursive=True) if child not in before]
        pool.close()
    assert psutil.wait_procs(started, timeout=30)[1] == []


@pytest.fixture
def pool(config: EnvConfig) -> Iterator[EnvPool]:
    with opened(config, num_envs=1) as pool:
        yield pool


def impatient(pool: EnvPool, config: EnvConfig) -> EnvThread:
    """The env of a pool that runs already, so that a reset needs no more than a moment."""
    return EnvThread(lambda: RemoteEnv(replace(config, reset_deadline_s=DEADLINE_S), pool.link(0), 0))


def reset(env: EnvThread) -> None:
    asyncio.run(env.call(lambda e: e.reset()))


def zoom(env: EnvThread) -> None:
    asyncio.run(env.call(lambda e: e.zoom(0, (0, 0, 9, 9))))


def made(folder: Path, suffix: str = "made") -> list[int]:
    """The pid of each env that was made (or closed), in order."""
    names = sorted((path.stem for path in folder.glob(f"*.{suffix}")), key=lambda name: int(name.split("-")[1]))
    return [int(name.split("-")[0]) for name in names]


@pytest.mark.parametrize(
    ("where", "sent"),
    [
        *(("reset", number) for number in (signal.SIGSTOP, signal.SIGKILL)),
        *(("zoom", number) for number in (signal.SIGSTOP, signal.SIGKILL)),
        ("step_chunk", signal.SIGKILL),
    ],
)
def test_a_process_that_is_killed_or_stops_is_replaced_and_the_episode_replayed(
    decider: Decider, config: EnvConfig, tmp_path: Path, where: str, sent: signal.Signals
) -> None:
    """Meanwhile another episode is played, which a process that hangs does not keep waiting."""
    with opened(config, num_envs=2) as pool:
        unbroken = play(decider, pool.envs[0])
        assert (unbroken.error, unbroken.end, len(unbroken.turns)) == ("", EndReason.SUCCESS, 2)
        env = impatient(pool, config) if where == "reset" else pool.envs[0]
        plant(tmp_path, where, "wait")

        async def meanwhile() -> tuple[Trajectory, Trajectory, int]:
            struck = asyncio.create_task(episode(decider, env))
            pid = await asyncio.to_thread(meet, tmp_path, where, sent)
            sent_at = time.monotonic()
            other = await episode(decider, pool.envs[1])
            assert sent != signal.SIGSTOP or not struck.done()
            trajectory = await struck
            assert time.monotonic() - sent_at > (0.9 * DEADLINE_S if sent == signal.SIGSTOP else 0)
            return trajectory, other, pid

        trajectory, other, pid = asyncio.run(meanwhile())
        for played, num in ((trajectory, 1), (other, 0)):
            assert_same_play(played, unbroken)
            assert (played.num_crashes, played.num_replays) == (num, num)
        assert made(tmp_path)[0] == pid
        assert len(made(tmp_path)) == len({*made(tmp_path)}) == 3


@pytest.mark.parametrize(("where", "fault"), [("reset", "exit"), ("step_chunk", "exit"), ("zoom", "raise")])
def test_an_env_that_raises_is_closed_and_made_anew(
    decider: Decider, pool: EnvPool, tmp_path: Path, where: str, fault: str
) -> None:
    unbroken = play(decider, pool.envs[0])
    plant(tmp_path, where, fault)
    trajectory = play(decider, pool.envs[0])
    assert_same_play(trajectory, unbroken)
    assert (trajectory.num_crashes, trajectory.num_replays) == (1, 1)
    first, second = made(tmp_path)
    assert first == second == made(tmp_path, "closed")[0]  # in the process that it was in


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise", r"RuntimeError: the step_chunk broke.*Traceback.*faulty_env.py"),
        ("die", r"the env process \d+ ended"),
        ("hang", rf"step_chunk took longer than {DEADLINE_S:g} s; the process was killed"),
    ],
)
def test_after_its_attempts_an_episode_ends_as_env_error(
    decider: Decider, pool: EnvPool, tmp_path: Path, fault: str, error: str
) -> None:
    later = "raise" if fault == "hang" else fault  # two deadlines are enough to wait for
    plant(tmp_path, "step_chunk", fault, fault, later, later)
    trajectory = play(decider, pool.envs[0], max_attempts=2)
    assert (trajectory.end, trajectory.num_crashes, trajectory.num_replays) == (EndReason.ENV_ERROR, 2, 1)
    assert re.search(error, trajectory.error, re.DOTALL)
    assert trajectory.task.instruction == "hold out"
    again = play(decider, pool.envs[0], max_attempts=3)  # the two faults that are left
    assert (again.end, again.num_crashes) == (EndReason.SUCCESS, 2)


@pytest.mark.parametrize(("fault", "num_crashes"), [("hang", 0), ("die", 1)])
def test_a_neighbour_in_the_process_is_replayed_at_no_cost_of_its_own_unless_either_may_have_killed_it(
    decider: Decider, config: EnvConfig, tmp_path: Path, fault: str, num_crashes: int
) -> None:
    """One of two envs in a process hangs, and the other's only attempt is not taken from it; or the process dies."""
    with opened(config, num_envs=2, envs_per_process=2) as pool:
        unbroken = [play(decider, env) for env in pool.envs]
        assert len({*made(tmp_path)}) == 1
        plant(tmp_path, "zoom", "hang" if fault == "hang" else "wait")

        async def both() -> list[Trajectory]:
            struck = asyncio.create_task(episode(decider, pool.envs[0], 2))
            while not list(tmp_path.glob("*.taken")):
                await asyncio.sleep(0.01)
            plant(tmp_path, "step_chunk", fault)  # the neighbour is in a call too when its process ends
            await asyncio.sleep(0.1 * DEADLINE_S)
            return [await episode(decider, pool.envs[1], 1 + num_crashes), await struck]

        other, struck = asyncio.run(both())
        assert_same_play(other, unbroken[1])
        assert_same_play(struck, unbroken[0])
        assert (other.num_crashes, other.num_replays) == (num_crashes, 1)
        assert (struck.num_crashes, struck.num_replays) == (1, 1)
        assert len({*made(tmp_path)}) == 2


def test_an_env_of_a_new_process_is_not_taken_for_the_one_that_was_lost(config: EnvConfig, tmp_path: Path) -> None:
    """Between two calls nobody waits for an answer that would not come."""
    with opened(config, num_envs=2, envs_per_process=2) as pool:
        reset(pool.envs[0])
        [lost] = made(tmp_path)
        os.kill(lost, signal.SIGKILL)
        with suppress(EnvCrashError):  # as long as the end of its pipe has not come
            reset(pool.envs[1])
        reset(pool.envs[1])
        with pytest.raises(EnvCrashError, match=f"the env process {lost} ended"):
            zoom(pool.envs[0])


def test_a_pid_that_has_become_somebody_elses_is_not_killed(pool: EnvPool, tmp_path: Path) -> None:
    """What is killed is the process, not who has a number that it had."""
    reset(pool.envs[0])
    link, env = pool.link(0), psutil.Process(*made(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        link._pid = bystander.pid
        link._kill(EnvCrashError("killed"))
        assert psutil.wait_procs([env], timeout=30)[1] == []
        assert bystander.poll() is None


def test_an_older_kernel_is_named(config: EnvConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", absent)
    with pytest.raises(OSError, match=r"need Linux 5\.3 or later, this is .* \(\[Errno 38\]"):
        EnvPool(config, 1)


def test_an_answer_that_cannot_be_sent_is_a_crash(pool: EnvPool, tmp_path: Path) -> None:
    plant(tmp_path, "zoom", "return a function")
    reset(pool.envs[0])
    with pytest.raises(EnvCrashError, match="pickle"):
        zoom(pool.envs[0])


def server_process() -> psutil.Process:
    return next(child for child in psutil.Process().children() if "rlvla.rollout.env_server" in child.cmdline())


def test_the_simulator_is_imported_once_for_all_processes(config: EnvConfig, tmp_path: Path) -> None:
    with opened(config, num_envs=2) as pool:
        for env in pool.envs:
            reset(env)
        assert len({*made(tmp_path)}) == 2
        assert [path.stem for path in tmp_path.glob("*.preloaded")] == [str(server_process().pid)]


def test_the_server_is_replaced_too(decider: Decider, pool: EnvPool, tmp_path: Path) -> None:
    play(decider, pool.envs[0])
    server = server_process()
    forked = server.children()
    assert [process.pid for process in forked] == made(tmp_path)
    server.kill()
    server.wait(5)
    assert psutil.wait_procs(forked, timeout=30)[1] == []  # which nobody has told
    trajectory = play(decider, pool.envs[0])
    assert trajectory.end is EndReason.SUCCESS


def test_closing_closes_envs_and_kills_what_hangs(config: EnvConfig, tmp_path: Path) -> None:
    """It ends, though one of them never would."""
    with opened(config, num_envs=2) as pool:
        for env in pool.envs:
            reset(env)
        stopped, other = made(tmp_path)
        os.kill(stopped, signal.SIGSTOP)
    assert made(tmp_path, "closed") == [other]
    with pytest.raises(EnvCrashError, match="closed"):
        pool.link(0)


def test_a_child_of_a_simulator_that_lives_on_does_not_keep_the_pool_open(config: EnvConfig, tmp_path: Path) -> None:
    """It holds the pipe, hence no end of file comes."""
    plant(tmp_path, "reset", "fork")
    plant(tmp_path, "close", "hang")
    pool = EnvPool(config, 1, 1)
    reset(pool.envs[0])
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(40)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert not closing.is_alive()


ORPHANS = """
import asyncio, sys, time
from rlvla.config import EnvConfig
from rlvla.rollout.env_process import EnvPool
pool = EnvPool(EnvConfig(id="lab/Faulty-v0", imports=("faulty_env",), kwargs={"folder": sys.argv[1]}), num_envs=2)
for env in pool.envs:
    asyncio.run(env.call(lambda e: e.reset()))
print("ready", flush=True)
time.sleep(60)
"""


def test_no_process_outlives_a_parent_that_is_killed(config: EnvConfig, tmp_path: Path) -> None:
    """One of the processes is stopped, so that it cannot see the end of its pipe."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert {child.pid for child in family} > {*made(tmp_path)}
        os.kill(made(tmp_path)[0], signal.SIGSTOP)
        parent.kill()
    assert psutil.wait_procs(family, timeout=30)[1] == []
