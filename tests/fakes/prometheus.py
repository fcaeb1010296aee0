"""A real Prometheus on this machine, with the repository's configuration; only where its targets come from is replaced."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from services.runtime.clock import SystemClock
from tests.fakes.processes import free_port

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARD = INFRA / "grafana" / "dashboards" / "moedge.json"
CONFIG = INFRA / "prometheus"
MISSING = "needs prometheus (Debian package of that name)"
RATE_INTERVAL = "1m"


def is_installed() -> bool:
    return shutil.which("prometheus") is not None


def panel_queries(row: str, edge: str) -> dict[str, str]:
    """Of one row of the dashboard, by panel and legend, with the variables filled in."""
    found: dict[str, str] = {}
    within = ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            within = panel["title"]
        elif within.startswith(row):
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$edge", edge)
                found[f"{panel['title']}: {target['legendFormat']}"] = query
    return found


class Prometheus:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._clock = SystemClock()

    async def values(self, query: str) -> list[float]:
        answer = await self._get("query", {"query": query})
        return [float(series["value"][1]) for series in answer["result"]]

    async def targets(self) -> list[tuple[str, str, str]]:
        """Job, health, last error."""
        answer = await self._get("targets", {})
        return sorted((t["labels"]["job"], t["health"], t["lastError"]) for t in answer["activeTargets"])

    async def rules(self) -> list[tuple[str, str]]:
        """Name and health of every alert."""
        answer = await self._get("rules", {})
        return [(rule["name"], rule["health"]) for group in answer["groups"] for rule in group["rules"]]

    async def all_up(self, num_targets: int, within_s: float = 30.0) -> None:
        await self._until(
            lambda targets: len(targets) == num_targets and {health for _, health, _ in targets} == {"up"}, self.targets, within_s
        )

    async def without_data(self, queries: Mapping[str, str], *, finite: bool, within_s: float = 60.0) -> list[str]:
        """Which queries stay without a series, or where asked without a finite value, until time is over."""

        async def missing() -> list[str]:
            answers = {name: await self.values(query) for name, query in queries.items()}
            return [name for name, values in answers.items() if not (any(map(math.isfinite, values)) if finite else values)]

        try:
            await self._until(lambda names: not names, missing, within_s)
        except AssertionError:
            return await missing()
        return []

    async def _until(self, condition: Any, look: Any, within_s: float) -> Any:
        give_up_at_s = self._clock.now_s() + within_s
        while not condition(seen := await look()):
            assert self._clock.now_s() < give_up_at_s, seen
            await self._clock.sleep(0.5)
        return seen

    async def ready(self) -> None:
        async def look() -> bool:
            try:
                return await asyncio.to_thread(_read, f"{self.address}/-/ready", None) is not None
            except (OSError, urllib.error.URLError):
                return False

        await self._until(bool, look, 30.0)

    async def _get(self, what: str, parameters: Mapping[str, str]) -> Any:
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        answer = json.loads(await asyncio.to_thread(_read, f"{self.address}/api/v1/{what}", body))
        assert answer["status"] == "success", answer
        return answer["data"]


def _read(url: str, body: bytes | None) -> bytes:
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        return bytes(answer.read())


@asynccontextmanager
async def running_prometheus(directory: Path, targets: Mapping[str, Sequence[str]]) -> AsyncIterator[Prometheus]:
    """Scrapes `targets` (addresses by job of the repository's configuration) every second."""
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG / name) for name in config["rule_files"]]
    jobs = [job["job_name"] for job in config["scrape_configs"]]
    assert set(targets) <= set(jobs), f"{sorted(set(targets) - set(jobs))} are not scraped"
    config["scrape_configs"] = [{"job_name": job, "static_configs": [{"targets": list(targets.get(job, ()))}]} for job in jobs]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus", f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with _started(command, directory / "prometheus.log"):
        prometheus = Prometheus(port)
        await prometheus.ready()
        yield prometheus


@contextmanager
def _started(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.kill()
            process.wait()
