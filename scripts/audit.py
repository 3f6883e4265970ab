"""Known vulnerabilities and licences of what is installed, as a report that fails no build.

    python scripts/audit.py --output outputs/audit.md

Vulnerabilities come from pip-audit, where it reaches a database that knows the packages; where not, the report says
so. Licences are what each package declares in its metadata.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro

PIP_AUDIT = (sys.executable, "-m", "pip_audit")
TIMEOUT_S = 300
"""pip-audit asks its database about one package after another."""


def licence(package: metadata.Distribution) -> str:
    """What a package declares: an SPDX expression, else its classifiers, else the first line of the free text."""
    about: Any = package.metadata  # a message, with more methods than it is typed with
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [text.split(" :: ")[-1] for text in about.get_all("Classifier", []) if text.startswith("License ::")]
    if classifiers:
        return ", ".join(classifiers)
    return (about.get("License") or "").strip().partition("\n")[0] or "not declared"


def vulnerabilities(command: Sequence[str]) -> str:
    """What pip-audit finds, as Markdown, or why it found nothing out.

    Args:
        command: that starts pip-audit.
    """
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return f"Not known: pip-audit had no answer within {TIMEOUT_S} s."
    except (json.JSONDecodeError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return f"Not known: pip-audit did not reach its database, or failed ({reason[:300]})."
    rows = [
        f"| {package['name']} {package['version']} | {finding['id']} | {', '.join(finding['fix_versions']) or 'none'} |"
        for package in packages
        for finding in package.get("vulns", [])
    ]
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if packages and len(skipped) == len(packages):
        return f"Not known: pip-audit looked none of {len(packages)} packages up (the first: {skipped[0]})."
    said = f"{len(packages) - len(skipped)} packages looked up, {len(skipped)} not, {len(rows)} findings.\n"
    return said + "\n".join(["\n| package | finding | fixed in |\n|---|---|---|", *rows]) if rows else said


def main(*, output: Path = Path("outputs/audit.md")) -> None:
    """Write the report."""
    found = vulnerabilities(PIP_AUDIT)
    packages = {package.metadata["Name"].lower(): package for package in metadata.distributions()}
    rows = (f"| {name} | {p.version} | {licence(p).replace('|', '/')} |" for name, p in sorted(packages.items()))
    lines = ["# Audit of the installed packages\n", f"## Vulnerabilities\n\n{found}\n"]
    lines += ["## Licences\n", "| package | version | licence |", "|---|---|---|", *rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n")
    print(f"{output}: {found.splitlines()[0]}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
