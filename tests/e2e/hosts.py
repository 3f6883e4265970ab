"""Hosts on one machine: network namespaces on a switch, each with a /tmp, a /dev/shm and a Ray node of its own.

Needs root and iproute2. A link may be cut, or lose and delay what goes over it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.run import ROOT, environment

PORT = 6379
SOON = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray gives a host up after seconds, where it would wait half a minute."""


_PROBE = "ip link add bridge0 type bridge && ip link add v0 type veth peer name v1 && tc qdisc add dev v0 root tbf "
LIMIT = ("rate", "20mbit", "burst", "32kb", "latency", "40ms")


def lack_of_hosts() -> str:
    """Why this machine lets nobody make hosts, or an empty string."""
    if os.getuid() or not shutil.which("ip") or not shutil.which("tc"):
        return "needs root and iproute2"
    made = subprocess.run(["unshare", "-nm", "sh", "-c", _PROBE + " ".join(LIMIT)], capture_output=True, check=False)
    return f"no network namespace, bridge or queue here: {made.stderr.decode().strip()}" if made.returncode else ""


def ip(*words: str | int) -> None:
    subprocess.run(["ip", *map(str, words)], check=True)


class Hosts:
    """`num` hosts with addresses 10.77.0.10 and up; host 0 is the head. Files of each lie in `folder`/<number>."""

    def __init__(self, folder: Path, num: int) -> None:
        self.folder = folder
        self._names = [f"rlvla{os.getpid()}-{i}" for i in range(num)]
        self._switch = f"rlvla{os.getpid()}-switch"
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = f"{self.at(0)}:{PORT}"

    def at(self, host: int) -> str:
        """Its address."""
        return f"10.77.0.{10 + host}"

    def tmp(self, host: int) -> Path:
        """What the host has at /tmp."""
        return self.folder / str(host)

    def __enter__(self) -> Hosts:
        switch = self._switch
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for i, name in enumerate(self._names):
            self.tmp(i).mkdir(parents=True)
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            ip("-n", name, "addr", "add", f"{self.at(i)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            process.wait(60)
        for name in (*self._names, self._switch):
            ip("netns", "del", name)

    def popen(self, host: int, *command: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host, in a session of its own."""
        words = [str(word) for word in command]
        tmp = self.tmp(host)
        mounts = f'mount --rbind "{tmp}" /tmp && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        if ROOT.is_relative_to("/tmp"):  # it stays where it is
            root = tmp / ROOT.relative_to("/tmp")
            mounts = f'mkdir -p "{root}" && mount --bind "{ROOT}" "{root}" && {mounts}'
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._names[host], "bash", "-c", mounts, "bash", *words],
                env={**environment(), "HOME": "/tmp", "RLVLA_CACHE": "", **SOON},  # a cache of its own
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_ray(self, host: int, num_cpus: int) -> None:
        """A Ray node on a host, the cluster's head on host 0; returns when it is up."""
        where = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"] if host == 0 else [f"--address={self.address}"]
        )
        size = [f"--num-cpus={num_cpus}", "--object-store-memory=150000000", "--disable-usage-stats", "--block"]
        log = self.folder / f"ray_{host}.log"
        ray = Path(sys.executable).with_name("ray")
        process = self.popen(host, ray, "start", f"--node-ip-address={self.at(host)}", *where, *size, log=log)
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)

    def throttle(self, host: int) -> None:
        """Its link gets 20 Mbit/s both ways; what comes faster waits up to 40 ms, and is lost when it would longer."""
        for space, device in ((self._names[host], "eth0"), (self._switch, f"port{host}")):
            subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", *LIMIT], check=True)

    def num_lost(self, host: int) -> int:
        """Packets that a throttled link has lost."""
        told = subprocess.run(
            ["tc", "-n", self._switch, "-s", "-j", "qdisc", "show", "dev", f"port{host}"],
            check=True,
            capture_output=True,
            text=True,
        )
        return sum(queue["drops"] for queue in json.loads(told.stdout))

    def cut(self, host: int) -> None:
        """Its link goes down."""
        ip("-n", self._names[host], "link", "set", "eth0", "down")
