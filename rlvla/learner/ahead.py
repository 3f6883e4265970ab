"""What comes next, made ready in threads while the caller still works on what came before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(tasks: Iterable[Callable[[], T]], num_threads: int) -> Generator[T, None, None]:
    """What tasks return, in their order; one for each thread is made before it is asked for.

    Threads, not processes: decoding pictures and tensor operations let go of the interpreter, the model needs it
    little, nothing is copied between processes, and nothing is left behind that a signal or an error would have to end.

    Args:
        tasks: none of them needs what another has done; each may run in any thread.
        num_threads: 0 runs each task when its result is asked for.

    Yields:
        A result each; what its task raises is raised in its place, and ends the threads, as closing the iterator does.
    """
    if not num_threads:
        yield from (task() for task in tasks)
        return
    pool, waiting = ThreadPoolExecutor(num_threads, thread_name_prefix="ahead"), deque[Future[T]]()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
