"""scripts/audit.py: what pip-audit answers becomes a report, and no answer is not taken for good news."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import audit

FOUND = """print('''{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
 {"name": "b", "version": "1", "vulns": []}, {"name": "c", "skip_reason": "local"}]}'''); raise SystemExit(1)"""
UNKNOWN = """print('{"dependencies": [{"name": "a", "skip_reason": "Dependency not found"}]}')"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (FOUND, ["2 packages looked up, 1 not, 1 findings.", "| a 1 | CVE-1 | 2 |"]),
        (UNKNOWN, ["Not known: pip-audit looked none of 1 packages up (the first: Dependency not found)."]),
        ("raise SystemExit('no route')", ["Not known: pip-audit did not reach its database, or failed (no route)."]),
    ],
)
def test_findings_are_listed_and_none_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: list[str]
) -> None:
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(audit, "PIP_AUDIT", [sys.executable, str(tmp_path / "program.py")])
    audit.main(output=tmp_path / "audit.md")
    page = (tmp_path / "audit.md").read_text()
    assert [words for words in said if words not in page] == []
    assert "BSD" in next(line for line in page.splitlines() if line.startswith("| numpy |"))
