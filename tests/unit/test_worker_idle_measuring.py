"""An edge whose first measurement was far too slow finds out by itself: nobody sends tasks to an edge that looks slow."""

from __future__ import annotations

import pytest

from tests.fakes.waiting import until
from tests.unit.serving_builders import budget_of, make_edge, running_merger, running_site

TOO_SLOW = 20.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("merger")


def typical_s(site):
    times = site.worker._ready().loop.step_times.value()
    return times.prefill_base_s + 32 * times.prefill_token_s + times.step_base_s + times.step_row_s


async def test_an_idle_edge_corrects_a_warm_up_that_was_disturbed(shared, tmp_path):
    async with running_merger(shared) as merger, running_site(tmp_path, merger.address, make_edge(budget_of(merger, 12))) as site:
        fits = site.worker._ready().loop.step_times
        right_s = typical_s(site)
        for fit in (fits.prefill, fits.step):
            for _ in range(10):
                fit.anchor(1.0, TOO_SLOW * right_s)
        wrong_s = typical_s(site)
        assert wrong_s > 5 * right_s
        await until(lambda: typical_s(site) < wrong_s / 4, 20.0, "a service model that is a quarter of the wrong one")
        assert (await site.answer()).version == site.worker.version
