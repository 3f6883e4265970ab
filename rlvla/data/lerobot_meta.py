"""What the `meta` folder of a LeRobot data set says, of versions 2.0, 2.1 and 3.0."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from rlvla.data.read_video import first_frames
from rlvla.data.rows import DatasetError
from rlvla.data.tables import read_table
from rlvla.durable.files import visible

VERSIONS = ("v2.0", "v2.1", "v3.0")
_STATES = ("observation.state", "state")
"""Feature names, LeRobot's own first, then those of openpi's examples/libero/convert_libero_data_to_lerobot.py."""
_ACTIONS = ("action", "actions")
_PREFIX = "observation.images."
_MAX_NUMBER = 2**40
"""Of an episode, a file, a chunk or a second."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the `meta` folder says."""

    root: Path
    info: Mapping[str, Any]
    tasks: Mapping[int, str]
    episodes: Mapping[int, Mapping[str, Any]]
    """By episode_index, in its order."""
    cameras: Mapping[str, str]
    """Short name -> feature, those to read."""
    state: str
    action: str
    starts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Feature of a video -> episode -> number of its first frame in the file; empty in version 2."""

    @property
    def is_v3(self) -> bool:
        """Whether files hold many episodes, with their places in `meta/episodes`."""
        return self.info["codebase_version"] == "v3.0"

    def data_file(self, episode: int) -> Path:
        """The table with the rows of an episode."""
        return self._file("data_path", episode, "data/")

    def data_files(self) -> list[Path]:
        """All tables, in the order of the rows.

        LeRobot reads every table of version 3 that is there, `data/*/*.parquet` (`load_nested_dataset` of its
        io_utils.py), and not where `meta/episodes` says that an episode lies: its converter from version 2.1 has left
        the first episode of a file with the place of the file before (LeRobot issue 2401).
        """
        listed = list(dict.fromkeys(self.data_file(episode) for episode in self.episodes))
        if not self.is_v3:
            return listed
        return sorted({*listed, *_found(self.root, "data/*/*.parquet")})

    def video_file(self, episode: int, feature: str) -> tuple[Path, int, float]:
        """The video with the frames of an episode, and of the first of them its number and the second it is said at."""
        file = self._file("video_path", episode, f"videos/{feature}/", video_key=feature)
        if not self.is_v3:
            return file, 0, 0.0
        return file, self.starts[feature][episode], float(self.episodes[episode][f"videos/{feature}/from_timestamp"])

    def _file(self, template: str, episode: int, place: str, **names: str) -> Path:
        row = self.episodes[episode]
        if self.is_v3:
            numbers = {name: row[f"{place}{name}"] for name in ("chunk_index", "file_index")}
        else:
            numbers = {"episode_chunk": episode // self.info["chunks_size"], "episode_index": episode}
        return inside(self.root, _filled(self.info[template], {**numbers, **names}))


def read_layout(path: Path, wanted: Sequence[str]) -> Layout:
    """Read and check the `meta` folder of a data set.

    Args:
        path: of the data set.
        wanted: cameras to read, by feature or its last part; none: the first that the data set lists.

    Raises:
        DatasetError: it is damaged, or of another version; or a camera does not exist. The message names the file.
    """
    file = inside(path, "meta/info.json")
    info = _info(file)
    if info["codebase_version"] not in VERSIONS:
        raise DatasetError(
            f"{file}: codebase_version is {info['codebase_version']!r}, this reads {', '.join(VERSIONS)}; "
            "LeRobot's own scripts convert older ones"
        )
    is_v3 = info["codebase_version"] == "v3.0"
    features = info["features"]
    cameras = _cameras(features, wanted, file)
    videos = [feature for feature in cameras.values() if features[feature]["dtype"] == "video"]
    needed = ("fps", "data_path", *(["video_path"] if videos else []), *([] if is_v3 else ["chunks_size"]))
    if missing := [key for key in needed if not info.get(key)]:
        raise DatasetError(f"{file}: no {', '.join(missing)}")
    numbers = ("chunk_index", "file_index") if is_v3 else ("episode_chunk", "episode_index")
    try:
        _filled(info["data_path"], dict.fromkeys(numbers, 0))
        if videos:
            _filled(info["video_path"], dict.fromkeys((*numbers, "video_key"), 0))
    except ValueError as error:
        raise DatasetError(f"{file}: {error}") from None
    episodes = _episode_rows(path, videos, is_v3)
    return Layout(
        root=path,
        info=info,
        tasks=_tasks(path, is_v3),
        episodes=episodes,
        starts={video: _starts(path, episodes, video, info["fps"]) for video in videos} if is_v3 else {},
        cameras=cameras,
        state=_feature(features, _STATES, file),
        action=_feature(features, _ACTIONS, file),
    )


@dataclass(frozen=True, kw_only=True)
class _Feature:
    dtype: str


@dataclass(frozen=True, kw_only=True)
class _Info:
    """What is read of `meta/info.json`."""

    codebase_version: str | None = None
    robot_type: str | None = None
    fps: Annotated[float, Field(gt=0, le=100_000)] | None = None
    chunks_size: PositiveInt | None = None
    data_path: str | None = None
    video_path: str | None = None
    features: dict[str, _Feature] = field(default_factory=dict)


_INFO = TypeAdapter(_Info)


def _info(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes() if file.is_file() else b""
        return asdict(_INFO.validate_json(content))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise DatasetError(f"{file}: missing, or not JSON that describes a data set ({wrong})") from None


def _filled(template: str, values: Mapping[str, object]) -> str:
    """A path with what it is to hold, numbers as in `{episode_index:06d}`; raises ValueError where it asks for more.

    `str.format` would also look into objects, and make gigabytes of blanks.
    """
    path = re.sub(r"\{(\w+)(?::0?(\d{,2})d?)?\}", lambda f: str(values.get(f[1], f[0])).zfill(int(f[2] or 0)), template)
    if "{" in path or "}" in path:
        raise ValueError(f"the path {template!r} may hold {', '.join(values)}, each as in {{{next(iter(values))}:03d}}")
    return path


def _cameras(features: Mapping[str, Any], wanted: Sequence[str], file: Path) -> dict[str, str]:
    """Short name -> feature of the wanted cameras, or of the first that the data set lists."""
    there = {key.removeprefix(_PREFIX): key for key, f in features.items() if f["dtype"] in ("image", "video")}
    names = [name.removeprefix(_PREFIX) for name in wanted] or list(there)[:1]
    if unknown := [name for name in names if name not in there]:
        raise DatasetError(f"{file}: no camera {unknown[0]}; there are {', '.join(there)}")
    if not names:
        raise DatasetError(f"{file}: no feature of dtype image or video")
    return {name: there[name] for name in names}


def _feature(features: Mapping[str, Any], names: Sequence[str], file: Path) -> str:
    for name in names:
        if name in features:
            return name
    raise DatasetError(f"{file}: no feature {' or '.join(names)}; there are {', '.join(features)}")


def _tasks(root: Path, is_v3: bool) -> dict[int, str]:
    file = inside(root, "meta/tasks.parquet" if is_v3 else "meta/tasks.jsonl")
    rows = read_table(file).to_pylist() if is_v3 else _json_lines(file)
    tasks: dict[int, str] = {}
    for row in rows:
        # pandas stores an index without a name as __index_level_0__; LeRobot has written the tasks both ways.
        text = row.get("task", row.get("__index_level_0__"))
        if not isinstance(text, str) or type(row.get("task_index")) is not int:
            raise DatasetError(f"{file}: a task without words or task_index: {row}")
        tasks[row["task_index"]] = text
    return tasks


def _episode_rows(root: Path, videos: Sequence[str], is_v3: bool) -> dict[int, dict[str, Any]]:
    """By episode_index, in its order: length and, in version 3, the places of rows and frames."""
    needed = ["episode_index", "length"]
    if is_v3:
        needed += ["data/chunk_index", "data/file_index"]
        needed += [f"videos/{v}/{what}" for v in videos for what in ("chunk_index", "file_index", "from_timestamp")]
        files = _found(root, "meta/episodes/*/*.parquet")
    else:
        files = [inside(root, "meta/episodes.jsonl")]
    episodes: dict[int, dict[str, Any]] = {}
    for file in files:
        # The statistics, hundreds of columns, stay on disk.
        for row in read_table(file, needed).to_pylist() if is_v3 else _json_lines(file):
            if missing := [key for key in needed if row.get(key) is None]:
                raise DatasetError(f"{file}: an episode without {missing[0]}")
            for key in needed:
                is_time = key.endswith("from_timestamp")
                if type(row[key]) not in ((int, float) if is_time else (int,)) or not 0 <= row[key] < _MAX_NUMBER:
                    raise DatasetError(f"{file}: an episode whose {key} is {row[key]!r}")
            if row["episode_index"] in episodes:
                raise DatasetError(f"{file}: episode {row['episode_index']} is listed twice")
            episodes[row["episode_index"]] = {key: row[key] for key in needed}
    if not episodes:
        raise DatasetError(f"{root / 'meta'}: no episodes")
    return dict(sorted(episodes.items()))


def _starts(root: Path, episodes: Mapping[int, Mapping[str, Any]], feature: str, fps: float) -> dict[int, int]:
    """By episode, the number of its first frame in the video that holds it among others."""
    places = {
        episode: tuple(row[f"videos/{feature}/{what}"] for what in ("chunk_index", "file_index", "from_timestamp"))
        for episode, row in episodes.items()
    }
    starts: dict[int, int] = {}
    for (chunk, file), group in groupby(sorted(places, key=lambda e: places[e]), key=lambda e: places[e][:2]):
        members = [*group]
        lengths = [episodes[episode]["length"] for episode in members]
        name = f"{root / 'meta/episodes'}, {feature}, chunk {chunk}, file {file}, episodes {members[0]}.."
        starts |= zip(members, first_frames([places[e][2] for e in members], lengths, fps, name), strict=True)
    return starts


def _json_lines(file: Path) -> list[dict[str, Any]]:
    content = file.read_bytes() if file.is_file() else b""
    if not content.strip():
        raise DatasetError(f"{file}: missing or empty")
    try:
        rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not JSON ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{file}: a line is no JSON object")
    return rows


def inside(root: Path, relative: str) -> Path:
    """A path that a file of the data set names; raises DatasetError where it leads to a file that is not of the set.

    In Hugging Face's cache a set is a folder `<repository>/snapshots/<revision>` of links into `<repository>/blobs`,
    where the repository's files and no others lie: so a link may lead there, but a path may not.
    """
    path = root / relative
    if "\0" in relative or not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise DatasetError(f"{root}: names a file outside of it, {relative!r}")
    target = path.resolve()
    homes = [root.resolve(), *(folder.parent.parent / "blobs" for folder in _snapshots(root))]
    if not any(target.is_relative_to(home) for home in homes):
        raise DatasetError(f"{root}: names a file outside of it, {relative!r}, which is a link to {target}")
    return path


def _snapshots(root: Path) -> Iterator[Path]:
    """The revision's folder in Hugging Face's cache that a data set is or lies in; none elsewhere."""
    folder = root.resolve()
    for revision in (folder, *folder.parents):
        if revision.parent.name == "snapshots" and revision.parent.parent.name.startswith("datasets--"):
            yield revision


def _found(root: Path, pattern: str) -> list[Path]:
    """Files of the data set, in order."""
    return [inside(root, str(file.relative_to(root))) for file in visible(root, pattern)]
