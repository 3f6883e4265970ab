import sys
from pathlib import Path

import pytest

from rlvla.plugins import PluginError, resolve


def test_a_module_and_a_file_resolve(tmp_path: Path) -> None:
    assert resolve("json:dumps").__name__ == "dumps"
    file = tmp_path / "mine.py"
    file.write_text("def score(trajectory):\n    return 1.5\n")
    assert resolve(f"{file}:score")(None) == 1.5


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    file.write_text("state = []\ndef a(): return state\ndef b(): return state\n")
    assert resolve(f"{file}:a")() is resolve(f"{file}:b")()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("success", "write it as 'module:function'"),
        ("json:", "write it as 'module:function'"),
        (":dumps", "write it as 'module:function'"),
        ("no_such_module:f", "no module named 'no_such_module'; install it"),
        ("json.nothing:f", "no module named 'json.nothing'"),
        ("nowhere/mine.py:f", r"there is no file nowhere.mine\.py"),
        ("json:nothing", "json has no 'nothing'; it has: .*dumps"),
    ],
)
def test_what_is_wrong_is_named(spec: str, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        resolve(spec)
    assert repr(spec) in str(caught.value)


def test_an_error_inside_the_plugin_stays_what_it_is(tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"
    missing.write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        resolve(f"{missing}:f")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for _ in range(2):  # a failed import leaves nothing behind that a second one would find
        with pytest.raises(ZeroDivisionError):
            resolve(f"{broken}:f")


def test_a_module_in_the_folder_that_one_stands_in_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all others: it cannot stand in for a module that is installed."""
    (tmp_path / "module_of_here.py").write_text("number = 3\n")
    (tmp_path / "colorsys.py").write_text("number = 4\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert resolve("module_of_here:number") == 3
    with pytest.raises(PluginError, match="colorsys has no 'number'"):
        resolve("colorsys:number")
