"""Compiled code runs only beside the sources that it was made of."""

from __future__ import annotations

import pytest

from loadgen.cli.compiled import refuse_stale
from loadgen.cli.console import CommandError


def make_repository(folder):
    """A repository with one source, and its compiled copy; gives the copy."""
    for root in (folder, folder / "build" / "compiled"):
        (root / "services").mkdir(parents=True)
        (root / "services" / "engine.py").write_text("x = 1\n")
    copy = folder / "build" / "compiled"
    (copy / ".made").touch()
    return copy


def test_a_compiled_copy_of_the_same_sources_runs(tmp_path):
    refuse_stale(make_repository(tmp_path))


@pytest.mark.parametrize(("name", "text"), [("engine.py", "x = 2\n"), ("new.py", "")])
def test_a_compiled_copy_of_other_sources_is_refused_and_the_cure_named(tmp_path, name, text):
    copy = make_repository(tmp_path)
    (tmp_path / "services" / name).write_text(text)
    with pytest.raises(CommandError, match=rf"services/{name}: run make compiled"):
        refuse_stale(copy)


def test_sources_that_are_no_compiled_copy_are_never_refused(tmp_path):
    copy = make_repository(tmp_path)
    (copy / ".made").unlink()
    (tmp_path / "services" / "engine.py").write_text("x = 2\n")
    refuse_stale(copy)
