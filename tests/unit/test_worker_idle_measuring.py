"""An edge whose first measurement was far too slow finds out by itself: nobody sends tasks to an edge that looks slow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from services.model.families.replays import RECORDED_AT
from services.worker.emulation import Device
from services.worker.warm_up import samples
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


class OnDevice:
    """Stands for a model there: how often it was called when a call is timed."""

    shape = SimpleNamespace(vocab_size=50)

    def __init__(self, device):
        self.device = torch.device(device)
        self.num_calls = 0

    def new_cache(self, num_slots):
        return None

    def prefill(self, cache, slots, prompts):
        self.num_calls += 1

    def step(self, cache, slots):
        self.num_calls += 1


@pytest.mark.parametrize(("device", "num_before"), [("cpu", 0), ("cuda", RECORDED_AT)])
def test_a_gpu_is_measured_once_what_it_does_is_recorded(device, num_before):
    model, seen = OnDevice(device), []

    def timed_s(call):
        seen.append(model.num_calls)
        model.num_calls = 0
        return 1.0

    samples(model, 2, 100, Device(), timed_s)  # type: ignore[arg-type]
    assert seen == [num_before] * 3
