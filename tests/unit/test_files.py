"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvla.files import appear_whole, differences


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, is_durable: bool) -> None:
    path = tmp_path / "file"
    with appear_whole(path, is_durable=is_durable) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), appear_whole(path, is_durable=is_durable) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_differences_name_the_keys() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "b was 2, is 3, c was None, is 4"
    assert differences({"a": 1}, {"a": 1}) == ""
