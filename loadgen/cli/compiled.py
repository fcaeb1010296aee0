"""Refuses compiled code that was made of other sources. What is compiled is a copy of the repository's packages in build/compiled."""

from __future__ import annotations

from pathlib import Path

from loadgen.cli.console import CommandError


def refuse_stale(folder: Path) -> None:
    """`folder` holds the packages that run. Raises where it is a compiled copy and a source beside it is another by now."""
    if not (folder / ".made").exists():
        return
    repository = folder.parents[1]
    for package in ("services", "loadgen"):
        for source in sorted((repository / package).rglob("*.py")):
            name = source.relative_to(repository)
            copy = folder / name
            if not copy.exists() or copy.read_bytes() != source.read_bytes():
                raise CommandError(f"{folder} was compiled from another {name}: run make compiled, or leave PYTHONPATH out")
