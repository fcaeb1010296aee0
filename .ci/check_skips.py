"""Fails when a test was skipped for a reason that a CI machine is expected to have no excuse for."""

import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def allowed_reasons() -> list[str]:
    """What this machine cannot have. Where it is root, it has installed Java and Redis; Kafka comes with ../shared."""
    # The last three: e2e tests in `make test` (`make e2e` never says it), and faults that a build has no time for.
    allowed = ["no CUDA device", "the stack is not up", "run with --e2e", "only with --faults full"]
    if shutil.which("docker") is None:
        allowed.append("no Docker engine")
    if not (REPOSITORY.parent / "shared").is_dir():
        allowed += ["no ../shared", "../shared", "no Kafka"]
    if os.geteuid() != 0:
        allowed += ["no Kafka", "no Redis", "needs root", "needs prometheus", "needs promtool"]
    return allowed


def main(junit: str) -> int:
    cases = list(ElementTree.parse(junit).iter("testcase"))
    skipped = [(case, skip.get("message") or "") for case in cases for skip in case.findall("skipped")]
    allowed = allowed_reasons()
    wrong = [(case, reason) for case, reason in skipped if not any(text in reason for text in allowed)]
    print(f"{len(cases)} tests, {len(skipped)} skipped, {len(wrong)} of them without an excuse")
    for case, reason in wrong:
        print(f"  {case.get('classname')}::{case.get('name')}: {reason}")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
