import importlib
import json
import sys
from pathlib import Path

import pytest

import rlvla.types
from rlvla.plugins import MOVED, PluginError, load, naming, present_name, resolve


def test_a_module_and_a_file_resolve(tmp_path: Path) -> None:
    assert resolve("json:dumps").__name__ == "dumps"
    file = tmp_path / "mine.py"
    file.write_text("def score(trajectory):\n    return 1.5\n")
    assert resolve(f"{file}:score")(None) == 1.5


def test_two_files_are_two_modules_however_alike_their_paths(tmp_path: Path) -> None:
    files = [tmp_path / "a_b/c.py", tmp_path / "a/b_c.py", tmp_path / "a/b.c.py", tmp_path / "a/b%2Ec.py"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"number = {number}\n")
    assert [resolve(f"{file}:number") for file in files] == [0, 1, 2, 3]


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


@pytest.mark.parametrize(
    ("text", "message", "cause"),
    [
        ("import no_such_dependency", r"ModuleNotFoundError: No module named 'no_such_dep.* \(broken\.py, line 2\)", 0),
        ("1 / 0", r"ZeroDivisionError: division by zero \(broken\.py, line 2\)", ZeroDivisionError),
        ("def f(:", r"SyntaxError: .*\(broken\.py, line 2\)$", SyntaxError),
        ("raise SystemExit(0)  # a script without a guard", r"SystemExit: 0 \(broken\.py, line 2\)", SystemExit),
    ],
)
def test_an_error_while_a_plugin_is_imported_is_named(
    tmp_path: Path, text: str, message: str, cause: type[Exception]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(f"number = 1\n{text}\n")
    for _ in range(2):  # a failed import leaves nothing behind that a second one would find
        with pytest.raises(
            PluginError, match=rf"^plugin '.*broken\.py:f', while it was imported, raised {message}"
        ) as e:
            resolve(f"{broken}:f")
        assert isinstance(e.value.__cause__, cause or ModuleNotFoundError)


def test_an_interrupt_is_no_error_of_a_plugin_and_an_error_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        resolve(f"{tmp_path}/slow.py:f")
    with pytest.raises(KeyboardInterrupt), naming("a plugin"):
        raise KeyboardInterrupt
    # What was named once is not named again.
    with pytest.raises(PluginError, match=r"^inner raised KeyError: 1 "), naming("outer"), naming("inner"):
        raise KeyError(1)


def folder(path: Path, **files: str) -> Path:
    """A folder with files; `__` in a name is a slash."""
    for name, text in files.items():
        file = path / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    folder(
        tmp_path,
        bonus="import scale\ndef value(): return 2 * scale.ONE\n",
        scale="ONE = 1\n",
        parts__init="",
        parts__deep="from . import other\nimport scale\ndef value(): return other.FOUR * scale.ONE\n",
        parts__other="FOUR = 4\n",
        mine=(
            "import parts.deep, parts.deep as deep\nfrom parts import other\nfrom . import scale\nimport bonus as b\n"
            "def score():\n    from late import EIGHT\n"
            "    return [scale.ONE, b.value(), parts.deep.value(), deep.value(), other.FOUR, EIGHT]\n"
        ),
        late="EIGHT = 8\n",
    )
    (tmp_path / "parts/init.py").rename(tmp_path / "parts/__init__.py")
    before, known = list(sys.path), set(sys.modules)
    assert resolve(f"{tmp_path}/mine.py:score")() == [1, 2, 4, 4, 4, 8]
    assert sys.path == before
    assert {"bonus", "scale", "parts", "late"}.isdisjoint(sys.modules.keys() - known)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("scale")


def test_a_link_to_a_file_is_the_file(tmp_path: Path) -> None:
    """Beside which its modules lie, as Python has it; `__file__` is the path that was named."""
    folder(tmp_path / "there", mine="import common\nPLACE = __file__\n", common="")
    link = tmp_path / "link.py"
    link.symlink_to(tmp_path / "there/mine.py")
    assert str(link) == resolve(f"{link}:PLACE")
    assert resolve(f"{link}:common") is resolve(f"{tmp_path}/there/mine.py:common")


def test_folders_may_each_have_a_module_of_one_name(tmp_path: Path) -> None:
    """Also of one of Python's own, or of one that is installed: nobody else gets to see it."""
    for name in ("first", "second"):
        folder(tmp_path / name, common=f"NAME = {name!r}\n", json="dumps = 3\n", mine="import common, json\n")
    for name in ("first", "second"):
        common = resolve(f"{tmp_path}/{name}/mine.py:common")
        assert name == common.NAME
        assert resolve(f"{tmp_path}/{name}/mine.py:json").dumps == 3
    assert json.dumps(3) == "3" == importlib.import_module("json").dumps(3)


def test_what_files_of_a_folder_import_is_loaded_once(tmp_path: Path) -> None:
    folder(tmp_path, shared="seen = []\n", one="from shared import seen\n", two="import shared\nseen = shared.seen\n")
    seen = resolve(f"{tmp_path}/one.py:seen")
    assert seen is resolve(f"{tmp_path}/two.py:seen") is resolve(f"{tmp_path}/shared.py:seen")


def test_there_is_one_copy_of_what_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is on `sys.path` as well, and of our own types, wherever a checkout of them lies."""
    folder(tmp_path, rlvla__types="Trajectory = 3\n", on_the_path="", mine="import on_the_path, rlvla.types\n")
    (tmp_path / "rlvla/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(f"{tmp_path}/mine.py:on_the_path") is importlib.import_module("on_the_path")
    assert resolve(f"{tmp_path}/mine.py:rlvla").types is rlvla.types


def test_arguments_from_the_config_are_those_of_the_function() -> None:
    with pytest.raises(PluginError, match=r"multiple values for .*'indent'"):
        load("key", "json:dumps", ("obj",), ("indent",), {"indent": 3})
    assert load("key", "json:dumps", ("obj",), (), {"indent": 1})([3]) == "[\n 3\n]"


def test_a_module_in_the_folder_that_one_stands_in_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all others: it cannot stand in for a module that is installed."""
    (tmp_path / "module_of_here.py").write_text("number = 3\n")
    (tmp_path / "colorsys.py").write_text("number = 4\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert resolve("module_of_here:number") == 3
    with pytest.raises(PluginError, match="colorsys has no 'number'"):
        resolve("colorsys:number")


@pytest.mark.parametrize("old", sorted(name for name in MOVED if ":" not in name))
def test_a_module_of_ours_is_found_under_its_former_name(old: str) -> None:
    pytest.importorskip("mujoco")
    function = {"tools": "zoom_in", "annotate": "annotate"}.get(old.split(".")[-1].split("_")[-1], "play")
    assert resolve(f"{old}:{function}") is resolve(f"{MOVED[old]}:{function}")
    assert present_name(f"{old}:{function}") == present_name(f"{MOVED[old]}:{function}") == f"{MOVED[old]}:{function}"
    assert present_name("rlvla_envs.tabletop.annotate:explain") == "rlvla_envs.libero.annotate:annotate"
    assert present_name("my_lab.libero_record:play") == "my_lab.libero_record:play"
