"""Takes that are annotated, on the disk as they get ready, and the data set that is assembled of all of them.

    <output>.partial/protocol.json       what the takes depend on; a run with another one does not go on here
                     lock                held by the one process that writes; gives way when it dies
                     takes/000017.take   a complete take: checksum, tally, rows with their pictures compressed
                     takes/000018.failed a start from which the expert failed
                     answers/000019.log  what has been answered of a take that is not complete
                     assembled/          the data set, until it is whole and becomes <output>
                     finished.json       it is whole: what is left to do is one rename, or to remove this folder

A process may be killed at any point and started again: what was put is there, whole, and nothing is put twice. Only
the assembled files wait for the disk. A take does not, since that would cost more than annotating it where an
annotator is fast: a power failure may tear the takes of the last half minute, which their checksums tell.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlvla.annotation.answers import AnswerLog, checked, verified
from rlvla.annotation.take import Tally
from rlvla.data.dataset import Writer
from rlvla.data.rows import DatasetError, encode, require_same
from rlvla.data.types import Demonstration
from rlvla.durable.files import CONTENT, appear_whole, differences, lock, sync, sync_tree, warn_untold, write_json

_SERVED = f"{CONTENT}openai."
"""Begins the keys of what servers have, which they say later."""
_VERSION = 3
"""Of the folder, kept with the protocol; 2 had takes without `annotation.key_step`."""


class Store(AbstractContextManager["Store"]):
    """Opens `<output>.partial`, or makes it; memory holds the answers of unfinished takes, and no rows.

    Opening reads every take that is there once, to check it.

    Args:
        output: folder of the data set to be; must not exist.
        protocol: JSON-able; what the takes depend on.

    Raises:
        FileExistsError: `output` exists, and is not the work of a run of this protocol that was killed cleaning up.
        ValueError: the folder belongs to another protocol (the message names the keys that differ), or another
            process writes there.
    """

    def __init__(self, output: Path, protocol: Mapping[str, Any]) -> None:
        self.is_finished = False
        """Whether `output` is whole and there is nothing left to do; if so, no other method may be called."""
        self.tally = Tally()
        """Of all complete takes."""
        self.complete: set[int] = set()
        """Takes that were put."""
        self.failed: set[int] = set()
        """Starts from which the expert is known to fail."""
        self.served: Mapping[str, str] = {}
        """See `hold_to`."""
        self._output = output
        self._folder = output.with_name(output.name + ".partial")
        self._protocol, self._marker = self._folder / "protocol.json", self._folder / "finished.json"
        self._takes, self._logs = self._folder / "takes", self._folder / "answers"
        self._answers: dict[int, AnswerLog] = {}
        self._schema: pa.Schema | None = None
        if output.exists() and not self._folder.is_dir():
            raise FileExistsError(f"{output} exists already: name another output folder, or remove it")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self._folder)
        try:
            # As it is read back: tuples become lists.
            self._open(json.loads(json.dumps({**protocol, "version": _VERSION})))
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write; the store cannot be used any more."""
        self._lock.close()

    def answers(self, index: int) -> AnswerLog:
        """What has been answered of a take, read when it is first asked for; gone once the take is complete."""
        if index not in self._answers:
            self._answers[index] = AnswerLog(self._log(index))
        return self._answers[index]

    def hold_to(self, served: Mapping[str, str]) -> None:
        """Keep in mind which model each server has, by key of the config; raises ValueError where it was another."""
        before = json.loads(self._protocol.read_text())
        now = before | {f"{CONTENT}{key}": model for key, model in served.items()}
        self._require_same(before, now)
        write_json(self._protocol, now, sort_keys=True)
        self.served = served

    def put(self, index: int, demonstrations: Sequence[Demonstration], tally: Tally) -> None:
        """Keep a take; it is complete when this returns, and not there at all where this is killed.

        Where all of its decisions were dropped, it has none. Raises DatasetError where its columns or shapes are not
        those of the takes that are there.
        """
        assert index not in self.complete | self.failed, f"take {index} is there"
        rows = b""
        if demonstrations:
            table = encode(demonstrations, f"take {index}")
            self._schema = self._schema or table.schema
            require_same(table.schema, self._schema, f"take {index}")
            stream = pa.BufferOutputStream()
            with pa.ipc.new_stream(stream, table.schema) as writer:
                writer.write_table(table)
            rows = stream.getvalue().to_pybytes()
        with appear_whole(self._take(index), is_durable=False) as file:
            file.write(checked(json.dumps(asdict(tally), sort_keys=True).encode() + b"\n" + rows))
        self.complete.add(index)
        self.tally += tally
        self._answers.pop(index, None)
        self._log(index).unlink(missing_ok=True)

    def put_failure(self, index: int) -> None:
        """Keep in mind that the expert failed at this start."""
        (self._takes / f"{index:06d}.failed").touch()
        self.failed.add(index)

    def finish(self, complete: Callable[[Path], object], **source: Any) -> int:
        """Make `output` of all complete takes in the order of their indices, and remove the partial folder.

        Whatever it was killed at, it is repeated from its beginning. Memory holds one file of rows.

        Args:
            complete: called with the folder while it lies aside, to add files of one's own.
            source: see `dataset.Writer`.

        Returns:
            Number of episodes.

        Raises:
            DatasetError: no row is left, the message says which checks failed most; or a take has been damaged since
                it was put, and has to be made again.
        """
        folder = self._folder / "assembled"
        shutil.rmtree(folder, ignore_errors=True)
        writer, num_rows = Writer(folder, **source), 0
        for index in sorted(self.complete):
            content = _unpack(self._take(index))
            if content is None:
                self._scan()  # names and removes whatever is damaged
                raise DatasetError(f"{self._folder}: take {index} is damaged, run again to make it anew")
            if content[1]:
                rows = pa.ipc.open_stream(content[1]).read_all()
                num_rows += len(rows)
                writer.add(rows)
        if not num_rows:
            worst = sorted(self.tally.dropped.items(), key=lambda item: (-item[1], item[0]))[:3]
            raise DatasetError(
                f"{self._folder}: not one of {self.tally.num_decisions} decisions is left; the checks that their last "
                f"answers failed: {', '.join(f'{name} {count} times' for name, count in worst) or 'none'}"
            )
        num_episodes = writer.finish()
        write_json(folder / "meta/annotation.json", asdict(self.tally) | {"served": self.served}, sort_keys=True)
        complete(folder)
        sync_tree(folder)
        write_json(self._marker, json.loads(self._protocol.read_text()), sort_keys=True)
        folder.rename(self._output)
        sync(self._output.parent)
        self._clean_up()
        return num_episodes

    def _open(self, protocol: dict[str, Any]) -> None:
        if self._output.exists():
            # `finished.json` goes last, so an empty folder is what a kill leaves at the very end.
            there = {path.name for path in self._folder.iterdir()} - {"lock"}
            if there and (not self._marker.exists() or "assembled" in there):
                raise FileExistsError(
                    f"{self._output} exists already, and {self._folder} holds an unfinished run: "
                    "remove one of them, or name another output folder"
                )
            differ = differences(json.loads(self._marker.read_text()), protocol) if there else ""
            self._clean_up()
            if differ:
                raise FileExistsError(f"{self._output} exists already, of another run ({differ}): name another output")
            return
        self._marker.unlink(missing_ok=True)
        if self._protocol.is_file():
            before = json.loads(self._protocol.read_text())
            if before.get("version") != _VERSION:
                raise ValueError(
                    f"{self._folder} holds an unfinished run of an earlier version of rlvla, whose takes lack "
                    "annotation.key_step: finish it with that version, or remove it, or name another output folder"
                )
            self._require_same(before, protocol)
            told = {key: value for key, value in before.items() if not key.startswith(_SERVED)}
            warn_untold(told, protocol, self._folder)
        else:
            write_json(self._protocol, protocol, sort_keys=True)
        self._takes.mkdir(exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        self._scan()

    def _require_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if differ := differences(before, now):
            raise ValueError(
                f"{self._folder} holds an unfinished run of another kind ({differ}): name another output folder, "
                "remove it, or go on with the config, and with all that it names, as it was"
            )

    def _scan(self) -> None:
        """Take stock of the folder, and remove what a kill or a damage has left unusable."""
        self.complete, self.failed, self.tally, self._schema = set(), set(), Tally(), None
        for file in sorted(self._takes.iterdir()):
            if file.name.startswith("."):  # being written when the process was killed
                file.unlink()
            elif file.suffix == ".failed":
                self.failed.add(int(file.stem))
            elif (content := _unpack(file)) is None:
                warnings.warn(f"{file} is damaged, its take will be made anew", stacklevel=2)
                file.unlink()
            else:
                tally, rows = content
                self.complete.add(int(file.stem))
                self.tally += tally
                self._log(int(file.stem)).unlink(missing_ok=True)
                if rows and self._schema is None:
                    self._schema = pa.ipc.open_stream(rows).schema

    def _take(self, index: int) -> Path:
        return self._takes / f"{index:06d}.take"

    def _log(self, index: int) -> Path:
        return self._logs / f"{index:06d}.log"

    def _clean_up(self) -> None:
        """Remove the partial folder, last of all what says that it may be removed."""
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (self._marker.name, "lock"):
                path.unlink()
        self._marker.unlink(missing_ok=True)
        (self._folder / "lock").unlink()
        self._folder.rmdir()
        self.is_finished = True


def _unpack(file: Path) -> tuple[Tally, bytes] | None:
    """Tally and packed rows of a take's file, no rows where all decisions were dropped; None where it is damaged."""
    content = verified(file.read_bytes())
    if content is None:
        return None
    tally, _, rows = content.partition(b"\n")
    return Tally(**json.loads(tally)), rows
