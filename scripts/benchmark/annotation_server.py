"""A stand-in for a vision-language model's server, in a process of its own, whose answers are valid.

It takes from the request what it needs by regular expressions, without parsing it: on a machine with few cores its time
is taken from the annotating process.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

MODEL = "stand-in"
TAIL = 8192
"""Bytes at the end of a request that hold the question and the schema's name; pictures come before."""
_FACTS = re.compile(rb"decision (\d+) of \d+, (\d+) percent.*Gripper: (open|closed)", re.DOTALL)
_NEXT = re.compile(rb"(open|close)s (?:during|[0-9]+ decision)")
_THOUGHTS = (
    "The bowl stands a hand's breadth ahead and a little left at moment {number}, so the arm keeps its height.",
    "At moment {number} the arm is on its way across the table, and the bowl still lies in front of the plate.",
    "The gap between the arm and the bowl is small at moment {number}; a slow, straight move keeps the bowl in line.",
)
"""About as long as a model's, different from one decision to the next."""
_LOOK = "The rim of the bowl is too small to be sure of at moment {number}, so a closer look at it is worth it."


@contextmanager
def serving(*, latency_s: float = 0.0, most: int = 1_000_000) -> Iterator[str]:
    """Its address.

    Args:
        latency_s: from when an answer is begun until it is sent.
        most: answers that are made at a time; the other requests wait for their turn.
    """
    command = [sys.executable, __file__, str(latency_s), str(most)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()  # it ends with its input, also where this process is killed


def answer(request: bytes) -> bytes:
    """A chat completion that agrees with the facts in a request of `rlvla.annotation.openai_annotator`."""
    tail = request[-TAIL:]
    facts = _FACTS.search(tail)
    assert facts is not None, "the question is not where the engine puts it"
    number, progress, gripper = int(facts[1]), int(facts[2]), facts[3].decode()
    thought = _THOUGHTS[number % len(_THOUGHTS)].format(number=number)
    coming = _NEXT.search(tail)
    fields = {
        "subtask": "move the bowl to the plate",
        "subject": "bowl",
        "gripper": gripper,
        "next_gripper": coming[1].decode() if coming else "stay",
        "progress": progress,
    }
    if b'"name":"key_frame"' in tail:
        look = {"observation": _LOOK.format(number=number), "image": 0, "bbox": [300, 300, 600, 600]}
        fields |= {**look, "conclusion": thought}
    else:
        fields["thought"] = thought
    message = {"role": "assistant", "content": json.dumps(fields)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}
    completion = {"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps(completion).encode()


async def serve(latency_s: float, most: int) -> None:
    """Serve on a free port of loopback, whose address is printed, until the input ends."""
    turns = asyncio.Semaphore(most)

    async def complete(request: web.Request) -> web.Response:
        content = await request.read()
        async with turns:
            if latency_s:
                await asyncio.sleep(latency_s)
            return web.Response(body=answer(content), content_type="application/json")

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2])))
