import sys
from pathlib import Path

import pytest

import audit

ANSWER = """{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
 {"name": "b", "version": "1", "vulns": []}, {"name": "c", "skip_reason": "local"}]}"""


def fake(tmp_path: Path, body: str) -> list[str]:
    """A program in pip-audit's place."""
    file = tmp_path / "program.py"
    file.write_text(body)
    return [sys.executable, str(file)]


def test_findings_are_listed(tmp_path: Path) -> None:
    page = audit.vulnerabilities(fake(tmp_path, f"print('''{ANSWER}'''); raise SystemExit(1)"))
    assert page.startswith("2 packages looked up, 1 not, 1 findings.")
    assert "| a 1 | CVE-1 | 2 |" in page


def test_a_database_that_knows_no_package_is_not_taken_for_good_news(tmp_path: Path) -> None:
    """As a mirror of the package index answers, which has the packages and no vulnerabilities."""
    answer = '{"dependencies": [{"name": "a", "skip_reason": "Dependency not found on PyPI"}]}'
    page = audit.vulnerabilities(fake(tmp_path, f"print('{answer}')"))
    assert page == "Not known: pip-audit looked none of 1 packages up (the first: Dependency not found on PyPI)."


def test_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    page = audit.vulnerabilities(fake(tmp_path, "raise SystemExit('ConnectionError: no route')"))
    assert page == "Not known: pip-audit did not reach its database, or failed (ConnectionError: no route)."


def test_every_package_has_a_licence_and_none_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "PIP_AUDIT", fake(tmp_path, f"print('''{ANSWER}'''); raise SystemExit(1)"))
    audit.main(output=tmp_path / "audit.md")
    page = (tmp_path / "audit.md").read_text()
    assert "CVE-1" in page
    assert "BSD" in next(line for line in page.splitlines() if line.startswith("| numpy |"))
    assert "2 packages looked up, 1 not, 1 findings" in capsys.readouterr().out
