"""A real Prometheus scrapes an embedded stack and answers every query of the dashboard with data."""

import pytest

from tests.fakes import prometheus
from tests.fakes.prometheus import panel_queries, running_prometheus
from tests.unit.pico_stack import answered, running_stack

pytestmark = [
    pytest.mark.connected,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not prometheus.is_installed(), reason=prometheus.MISSING),
]
JOBS = {"broker": "broker", "controller": "controller", "merger": "merger", "small": "worker-small"}


async def test_every_panel_has_data(tmp_path):
    async with running_stack(tmp_path, edges=1, metrics_port=0, worker={"report_interval_s": 0.2}) as (stack, stub):
        targets = {JOBS[name]: [f"127.0.0.1:{port}"] for name, port in stack.metrics_ports.items()}
        async with running_prometheus(tmp_path, targets) as server:
            await server.all_up(len(targets))
            for _ in range(25):
                await answered(stub)
            missing = {row: await server.without_data(panel_queries(row, "small"), finite=False) for row in ("Fleet", "One edge", "Merges")}
            assert missing == {"Fleet": [], "One edge": [], "Merges": []}
            felt = {name: query for name, query in panel_queries("One edge", "small").items() if "update" not in name}
            assert await server.without_data(felt, finite=True) == []
            rules = await server.rules()
            assert len(rules) > 8
            assert {health for _, health in rules} == {"ok"}
