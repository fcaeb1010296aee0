"""Failpoints: refused where they are misspelt, nothing where they are not set, and the end of the process where they are reached."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from services.merger.settings import MergerSettings
from services.runtime.errors import SettingsError
from services.runtime.failpoints import MERGER_POINTS, WORKER_POINTS, Failpoint
from services.worker.settings import WorkerSettings


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("nowhere:kill", "'nowhere' is no failpoint here; there are manifest, chunk"),
        ("load", "'' is no action; write load:kill or load:sleep=SECONDS"),
        ("load:explode", "'explode' is no action"),
        ("load:sleep=soon", "is no action"),
        ("load:sleep=-1", "is no action"),
    ],
)
def test_a_misspelt_failpoint_is_refused_with_the_cure(text, cure, monkeypatch):
    monkeypatch.setenv("MOEDGE_WORKER_FAILPOINT", text)
    with pytest.raises(SettingsError, match="MOEDGE_WORKER_FAILPOINT") as refused:
        WorkerSettings.load()
    assert cure in str(refused.value)


def test_services_have_none_unless_it_is_set():
    assert Failpoint.parse(WorkerSettings.load().failpoint, WORKER_POINTS) == Failpoint()
    assert Failpoint.parse(MergerSettings.load(model="x").failpoint, MERGER_POINTS) == Failpoint()


async def test_only_the_named_step_is_felt():
    point = Failpoint.parse("load:sleep=0", WORKER_POINTS)
    point.reached("canary")
    await point.passed("load")
    Failpoint().reached("")


def test_a_killing_failpoint_leaves_no_last_word():
    code = (
        "from services.runtime.failpoints import *; p = Failpoint.parse('switch:kill', WORKER_POINTS); "
        "p.reached('load'); print('before', flush=True); p.reached('switch'); print('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "before\n")
