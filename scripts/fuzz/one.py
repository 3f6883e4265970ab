"""One target under libFuzzer, for `fuzz.py`: NAME MEMORY_MB OUTPUT and libFuzzer's options."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import atheris

MAX_ADDRESS_BYTES = 32 << 30
"""What asks for more at once gets a MemoryError, not the machine's memory."""


def main(name: str, memory_mb: str, output: str, *options: str) -> None:
    """Does not return: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["rlvla"]):  # pyright: ignore[reportAttributeAccessIssue]
        from targets import TARGETS, WORDS

        target = TARGETS[name]
        target.run(target.seeds[0])  # imports what it needs, which is not to be blamed on an input
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + int(memory_mb)
    corpus, words = Path(output) / "corpus" / name, Path(output) / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    bounds = [f"-max_len={target.max_bytes}", f"-rss_limit_mb={most_mb}", f"-dict={words}"]
    atheris.Setup([sys.argv[0], *bounds, "-verbosity=0", "-print_final_stats=1", *options, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
