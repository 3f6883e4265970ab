"""The store of takes: killed anywhere, damaged anywhere, it ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlvla.annotation.answers import AnswerLog
from rlvla.annotation.run import protocol
from rlvla.annotation.store import Store
from rlvla.annotation.take import Reply, Tally
from rlvla.config import AnnotateConfig, EnvConfig, OpenAIConfig
from rlvla.data import dataset
from rlvla.data.types import Demonstration
from rlvla.durable.files import CONTENT
from rlvla.types import Annotation
from tests.e2e.run import script
from tests.unit.store_worker import answer, demonstration

PROTOCOL = {"seed": 0, "names": ("markup", "box")}
NUM_TAKES = 6


def take(index: int) -> list[Demonstration]:
    return [demonstration(index, decision, answer(index, decision, 1)) for decision in range(1 + index % 3)]


def put(store: Store, indices: Iterable[int]) -> None:
    for index in indices:
        store.put(index, take(index), Tally(num_decisions=index, rejected={"box": 1}))


def finish(store: Store) -> int:
    def complete(folder: Path) -> None:
        (folder / "README.md").write_text(f"{store.tally}\n")

    return store.finish(complete, robot="test", fps=2.0, suites=("spatial",))


def digest(folder: Path) -> str:
    """Of all names and bytes."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@pytest.fixture
def calm(tmp_path: Path) -> str:
    """What an undisturbed run of `NUM_TAKES` takes comes to."""
    with Store(tmp_path / "calm", PROTOCOL) as store:
        put(store, range(NUM_TAKES))
        finish(store)
    return digest(tmp_path / "calm")


def test_takes_become_a_data_set_in_their_order(tmp_path: Path) -> None:
    output = tmp_path / "runs/demos"
    with Store(output, PROTOCOL) as store:
        assert not store.is_finished
        store.answers(4).add(0, 0, answer(4, 0, 1))
        assert store.answers(4).get(0, 0) == answer(4, 0, 1)
        put(store, (4, 1))
        assert not any((tmp_path / "runs/demos.partial/answers").iterdir())  # gone once their take is complete
        store.put(2, [], Tally(num_decisions=3, num_dropped=3))
        store.put_failure(3)
        assert (store.complete, store.failed) == ({1, 2, 4}, {3})
        assert store.tally == Tally(num_decisions=8, num_dropped=3, rejected={"box": 2})
        assert finish(store) == 2
    read = dataset.read(output)
    assert [d.annotation for d in read] == [d.annotation for index in (1, 4) for d in take(index)]
    assert read.episode_index.tolist() == [0, 0, 1, 1]
    assert (read.tasks, read.suites) == (("press pad 1",), ("spatial",))
    assert json.loads((output / "meta/annotation.json").read_text())["num_dropped"] == 3
    assert "num_decisions=8" in (output / "README.md").read_text()
    assert [path.name for path in output.parent.iterdir()] == ["demos"]


def test_a_run_killed_before_every_change_of_a_file_ends_with_the_same_bytes(tmp_path: Path) -> None:
    output = tmp_path / "demos"
    killed = int(script("tests/unit/store_worker.py", "kills", output, str(NUM_TAKES)))
    assert killed >= 60
    assert digest(output) == digest(tmp_path / "calm")
    assert {path.name for path in tmp_path.iterdir()} == {"demos", "calm", "demos.asked", "calm.asked"}
    asked, calm = (Counter((tmp_path / f"{name}.asked").read_text().splitlines()) for name in ("demos", "calm"))
    assert asked.keys() == calm.keys()
    # Only the answer that a kill fell upon is asked for again.
    assert (asked - calm).total() <= killed


def test_memory_does_not_grow_with_the_takes(tmp_path: Path) -> None:
    def peak(num_takes: int) -> float:
        return float(script("tests/unit/store_worker.py", "peak", tmp_path / str(num_takes), str(num_takes)))

    few, many = peak(60), peak(600)
    size = sum(path.stat().st_size for path in (tmp_path / "600").rglob("*")) / 2**20
    assert size > 16
    assert many - few < 8


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_take_is_named_and_made_anew(tmp_path: Path, calm: str, damage: str) -> None:
    output = tmp_path / "demos"
    with Store(output, PROTOCOL) as store:
        put(store, range(NUM_TAKES))
    file = tmp_path / "demos.partial/takes/000002.take"
    content = file.read_bytes()
    for place in {"torn": (1, 500, len(content) - 1), "flipped": (0, 40, len(content) - 1), "empty": (0,)}[damage]:
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        file.write_bytes(flipped if damage == "flipped" else content[:place])
        with pytest.warns(UserWarning, match=r"000002\.take is damaged"):
            store = Store(output, PROTOCOL)
        assert store.complete == {0, 1, 3, 4, 5}
        assert store.tally.num_decisions == sum(range(NUM_TAKES)) - 2
        put(store, [2])
        store.close()
    with Store(output, PROTOCOL) as store:
        finish(store)
    assert digest(output) == calm


def test_damage_while_running_does_not_reach_the_data_set(tmp_path: Path, calm: str) -> None:
    output = tmp_path / "demos"
    with Store(output, PROTOCOL) as store:
        put(store, range(NUM_TAKES))
        (tmp_path / "demos.partial/takes/000004.take").write_bytes(b"")
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(dataset.DatasetError, match="take 4 is damaged"):
            finish(store)
        assert not output.exists()
        assert 4 not in store.complete
        put(store, [4])
        finish(store)
    assert digest(output) == calm


def replies() -> dict[tuple[int, int, bool], Reply]:
    annotation = Annotation(
        thoughts=("é\n", "\u2028"), looks=((1, (0, 1, 2, 3)),), subtask="a", gripper="open", progress=0.1
    )
    return {
        (0, 0, False): Reply(annotation=None, error='no "JSON"', prompt_tokens=5),
        (0, 1, False): Reply(annotation=annotation, completion_tokens=7),
        (0, 1, True): Reply(annotation=None, error="it is shut"),
        (3, 0, False): Reply(annotation=Annotation(thoughts=("b",))),
    }


@pytest.mark.parametrize("is_torn", [True, False])
def test_answers_outlive_whatever_happens_to_later_ones(tmp_path: Path, is_torn: bool) -> None:
    path, expected = tmp_path / "answers.log", replies()
    log = AnswerLog(path)
    for (decision, attempt, is_judge), reply in expected.items():
        log.add(decision, attempt, reply, is_judge=is_judge)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.write_bytes(content[:place] if is_torn else flipped)
        log = AnswerLog(path)
        there = [log.get(decision, attempt, is_judge=is_judge) for decision, attempt, is_judge in expected]
        num_whole = content[:place].count(b"\n")
        assert there == [*expected.values()][:num_whole] + [None] * (4 - num_whole)
        for (decision, attempt, is_judge), reply in [*expected.items()][num_whole:]:
            log.add(decision, attempt, reply, is_judge=is_judge)
        assert path.read_bytes() == content


CFG = AnnotateConfig(annotator="rlvla_envs.tabletop.annotate:annotate")
JUDGED = replace(CFG, openai=OpenAIConfig(judge=True))
OWN_JUDGE = OpenAIConfig(judge=True, judge_model="a", judge_base_url="http://b/v1", judge_api_key_env="C")
RECORDED = AnnotateConfig(source=Path("recorded"))


@pytest.mark.parametrize(
    ("cfg", "change", "keys"),
    [
        (CFG, {"output": Path("x"), "num_samples": 3, "max_refused_first": 5}, ()),
        (CFG, {"openai": OpenAIConfig(timeout_s=1.0)}, ()),
        (CFG, {"env": replace(CFG.env, deadline_s=9.0)}, ()),
        (CFG, {"openai": JUDGED.openai}, ("openai.judge", f"{CONTENT}prompts")),
        (JUDGED, {"openai": OWN_JUDGE}, ("openai.judge_model",)),
        (RECORDED, {"env": EnvConfig(id="gone/Gone-v0", imports=("gone",))}, ()),
        (RECORDED, {"annotator": "openai"}, ("annotator", f"{CONTENT}prompts")),
    ],
)
def test_takes_depend_on_what_moves_them(cfg: AnnotateConfig, change: dict[str, Any], keys: tuple[str, ...]) -> None:
    before, now = protocol(cfg), protocol(replace(cfg, **change))
    assert {key for key in {**before, **now} if before.get(key) != now.get(key)} == set(keys)


def test_a_run_does_not_go_on_with_what_has_come_in_the_place_of_what_it_began_with(tmp_path: Path) -> None:
    """A recording that was repaired, say; identity's own tests have the other things."""
    source = tmp_path / "recorded/episode.hdf5"
    source.parent.mkdir()
    source.write_bytes(b"1")
    cfg = replace(CFG, source=source.parent)
    assert {f"{CONTENT}source", f"{CONTENT}annotator"} <= protocol(cfg).keys()
    assert {f"{CONTENT}env.id", f"{CONTENT}expert"} <= protocol(AnnotateConfig()).keys()
    Store(tmp_path / "demos", protocol(cfg)).close()
    (source.parent / ".DS_Store").write_bytes(b"looked at")
    Store(tmp_path / "demos", protocol(cfg)).close()
    source.write_bytes(b"2")
    with pytest.raises(ValueError, match=r"another kind \(content of source was '\w+', is '\w+'\): name another"):
        Store(tmp_path / "demos", protocol(cfg))


def test_a_server_keeps_its_model_and_the_data_set_tells_it(tmp_path: Path) -> None:
    """Which no key need name, where the server has one only."""
    served = {"openai.model": "Qwen3", "openai.judge_model": "Qwen4"}
    with Store(tmp_path / "demos", PROTOCOL) as store:
        store.hold_to(served)
        put(store, [0])
    with Store(tmp_path / "demos", PROTOCOL) as store:
        for key, before in served.items():
            with pytest.raises(ValueError, match=rf"content of {key} was '{before}', is 'Llama'"):
                store.hold_to({key: "Llama"})
        store.hold_to(served)
        finish(store)
    assert json.loads((tmp_path / "demos/meta/annotation.json").read_text())["served"] == served


def test_takes_of_an_earlier_version_are_left_to_it(tmp_path: Path) -> None:
    with Store(tmp_path / "demos", PROTOCOL) as store:
        put(store, [0])
    file = tmp_path / "demos.partial/protocol.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "version"}))
    with pytest.raises(ValueError, match=r"demos\.partial holds an unfinished run of an earlier version.*remove it"):
        Store(tmp_path / "demos", PROTOCOL)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path / "demos", PROTOCOL), pytest.raises(ValueError, match=r"process \d+ is writing there; wait"):
        Store(tmp_path / "demos", PROTOCOL)
    Store(tmp_path / "demos", PROTOCOL).close()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "demos"
    output.mkdir()
    with pytest.raises(FileExistsError, match="name another output folder, or remove it"):
        Store(output, PROTOCOL)
    assert not (tmp_path / "demos.partial").exists()
    output.rmdir()
    with Store(output, PROTOCOL) as store:
        put(store, [0])
    output.mkdir()
    with pytest.raises(FileExistsError, match="holds an unfinished run"):
        Store(output, PROTOCOL)
    output.rmdir()
    with Store(output, PROTOCOL) as store:
        assert store.complete == {0}


def test_a_run_without_a_row_says_why(tmp_path: Path) -> None:
    with Store(tmp_path / "demos", PROTOCOL) as store:
        store.put(0, [], Tally(num_decisions=9, num_dropped=9, dropped={"box": 5, "length": 7, "gripper": 1, "a": 1}))
        with pytest.raises(dataset.DatasetError, match=r"not one of 9 .* length 7 times, box 5 times, a 1 times$"):
            finish(store)
    assert not (tmp_path / "demos").exists()


def test_a_take_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    plain = demonstration(1, 0, Reply(annotation=None))
    with Store(tmp_path / "demos", PROTOCOL) as store:
        put(store, [0])
        with pytest.raises(dataset.DatasetError, match=r"take 1: annotation\.thoughts is missing"):
            store.put(1, [plain], Tally())
    with Store(tmp_path / "demos", PROTOCOL) as store:
        with pytest.raises(dataset.DatasetError, match="take 1"):
            store.put(1, [plain], Tally())
        with pytest.raises(dataset.DatasetError, match="take 1, decision 1: annotation"):
            store.put(1, [*take(0), plain], Tally())
