"""A policy that is brought to a node which does not have it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rlvla.cluster import carried
from rlvla.cluster.carried import Carried, Shelf, stamps
from rlvla.durable.checkpoints import digests
from rlvla.durable.files import CACHE


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(carried, "PIECE", 1000)
    folder = tmp_path / "policy"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(2500))
    (folder / "adapter/adapter_model.safetensors").write_bytes(b"")
    return folder


def of(folder: Path) -> Carried:
    return Carried(folder=folder, stamps=stamps(folder), shelf="none")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in digests(folder)}


def test_what_lies_there_unchanged_is_read_there(policy: Path) -> None:
    assert of(policy).here() == policy


def test_a_copy_has_every_byte_and_is_brought_once(policy: Path) -> None:
    calls = []

    def read(name: str, offset: int) -> bytes:
        calls.append(name)
        return Shelf(policy).read(name, offset)

    copy = of(policy).brought(Shelf(policy).digests(), read)
    assert content(copy) == content(policy)
    assert calls.count("model.safetensors") == 4  # the last piece is empty
    assert of(policy).brought(Shelf(policy).digests(), read) == copy
    assert len(calls) == 7
    (policy / "config.json").write_text("{} ")
    assert of(policy).brought(Shelf(policy).digests(), read) != copy


def test_a_policy_that_changes_on_its_way_is_refused(policy: Path, tmp_path: Path) -> None:
    sent = Shelf(policy).digests()
    (policy / "config.json").write_text("[]")
    with pytest.raises(OSError, match=r"policy did not arrive as it was sent: is it being written to\?"):
        of(policy).brought(sent, Shelf(policy).read)
    assert [path.name for path in (tmp_path / "cache/policies").iterdir()] == ["lock"]


def test_another_folder_of_the_same_name_is_not_taken_for_it(policy: Path) -> None:
    sent = of(policy)
    copy = shutil.copytree(policy, policy.with_name("other"), copy_function=shutil.copy)
    assert stamps(copy) != sent.stamps
    assert stamps(shutil.copytree(policy, policy.with_name("preserved"))) == sent.stamps
