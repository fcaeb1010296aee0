"""Edges files: strict TOML, memory as bytes or as a share of the model, and the edges one gets without a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.core.offload.values import StepTimes
from services.runtime.edges import EdgesFileError, MemoryShare, ModelBytes, default_edges, described_edges, read_edges, read_memory

EXAMPLES = Path(__file__).parents[2] / "infra" / "edges"
SIZES = ModelBytes(full=1_000_000, non_expert=40_000, num_experts=384)  # an expert is 2,500 bytes

GOOD = """
[[edges]]
name = "barn"
memory_bytes = 123
speed = 0.5
device = "cpu"
max_batch = 2
max_queue = 8
initial_mix = { question = 0.75, facts = 0.25 }
[edges.regions.west]
latency_s = 0.01
uplink_bytes_per_s = 1e6
downlink_bytes_per_s = 2e6
"""
REGION = "[edges.regions.west]\nlatency_s = 0\nuplink_bytes_per_s = 1\ndownlink_bytes_per_s = 1\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_key_of_an_edge_is_read(tmp_path):
    (edge,) = read_edges(write(tmp_path / "edges.toml", GOOD))
    assert (edge.name, edge.memory_bytes, edge.speed, edge.device, edge.max_batch, edge.max_queue) == ("barn", 123, 0.5, "cpu", 2, 8)
    assert edge.initial_mix == {"question": 0.75, "facts": 0.25}
    assert edge.regions["west"].latency_s == 0.01


def test_an_edge_may_emulate_a_device_of_stated_step_times_instead_of_a_speed(tmp_path):
    stated = "step_times = { step_base_s = 0.02, step_row_s = 0.002, prefill_base_s = 0.03, prefill_token_s = 0 }"
    (edge,) = read_edges(write(tmp_path / "edges.toml", GOOD.replace("speed = 0.5", stated)))
    assert edge.step_times == StepTimes(0.02, 0.002, 0.03, 0.0)
    with pytest.raises(EdgesFileError, match="'barn': step_times: this edge has a speed too"):
        read_edges(write(tmp_path / "both.toml", GOOD.replace("speed = 0.5", f"speed = 0.5\n{stated}")))
    with pytest.raises(EdgesFileError, match=r"'barn': step_times\.prefill_token_s: missing"):
        read_edges(write(tmp_path / "less.toml", GOOD.replace("speed = 0.5", stated.replace(", prefill_token_s = 0", ""))))


@pytest.mark.parametrize(("given", "memory_bytes"), [
    (5, 5),
    ("25%", 250_000),
    ("100%", 1_000_000),
    ("25% experts", 40_000 + 96 * 2_500 + 1_250),
    ("100% experts", 1_000_000),
])  # fmt: skip
def test_memory_is_bytes_or_a_share_of_the_model_or_of_its_experts(given, memory_bytes):
    memory = read_memory(given)
    assert (memory.of(SIZES) if isinstance(memory, MemoryShare) else memory) == memory_bytes


@pytest.mark.parametrize("given", [0, -1, "0%", "101%", "25", "a quarter", 1.5, True, None])
def test_other_memory_is_refused(given):
    with pytest.raises(EdgesFileError, match="memory_bytes: "):
        read_memory(given)


def test_an_edge_is_described_before_the_model_is_known(tmp_path):
    text = GOOD.replace("memory_bytes = 123", 'memory_bytes = "25% experts"') + GOOD.replace("barn", "shed")
    by_share, by_bytes = described_edges(write(tmp_path / "edges.toml", text))
    assert (by_share.name, by_share.needs_model) == ("barn", True)
    assert (by_bytes.name, by_bytes.needs_model) == ("shed", False)
    assert by_share.resolved(SIZES).memory_bytes == 40_000 + 96 * 2_500 + 1_250
    assert by_bytes.resolved(None).memory_bytes == 123
    with pytest.raises(EdgesFileError, match="edge 'barn': memory_bytes: '25% experts' is a share"):
        by_share.resolved(None)


def test_a_share_without_a_model_says_so(tmp_path):
    text = f'[[edges]]\nname = "a"\nmemory_bytes = "25%"\n{REGION}'
    with pytest.raises(EdgesFileError, match="the model is not known here; give a number of bytes"):
        read_edges(write(tmp_path / "edges.toml", text))


@pytest.mark.parametrize(("text", "complaint"), [
    (GOOD.replace("speed", "sped"), r"edge 'barn': sped: unknown key of an edge; did you mean speed\?"),
    (GOOD.replace("latency_s", "latency_ms"), r"edge 'barn': latency_ms: unknown key of regions.west; did you mean latency_s\?"),
    (GOOD + "\n[defaults]\n", r"defaults: unknown key of the file; known are edges"),
    (GOOD.replace("uplink_bytes_per_s = 1e6", ""), r"regions.west.uplink_bytes_per_s: missing"),
    (GOOD.replace("= 1e6", "= 0"), r"regions.west.uplink_bytes_per_s: must be a number above 0, not 0"),
    (GOOD.replace("memory_bytes = 123", ""), r"memory_bytes: missing"),
    (GOOD.replace('"cpu"', '"tpu"'), r"device: must be one of auto, cpu, cuda, not 'tpu'"),
    (GOOD.replace("max_batch = 2", "max_batch = 0"), r"max_batch: must be a whole number from 1, not 0"),
    (GOOD.replace("speed = 0.5", "speed = 0"), r"speed: must be a number above 0"),
    (GOOD.replace("0.75", "0.5"), r"initial_mix: shares must sum to 1, not 0.75"),
    (GOOD.replace('"barn"', '"a barn"'), r"edges\[0\]|edge 'a barn': name: "),
    (GOOD.replace('name = "barn"', ""), r"edges\[0\]: name: "),
    (GOOD + GOOD, r"name: 'barn' is used twice"),
    ('[[edges]]\nname = "a"\nmemory_bytes = 1\n', r"edge 'a': regions: missing"),
    ("", r"edges: missing"),
    ("[[edges", r"not TOML"),
])  # fmt: skip
def test_a_bad_file_is_one_error_that_names_edge_and_key(tmp_path, text, complaint):
    path = write(tmp_path / "edges.toml", text)
    with pytest.raises(EdgesFileError, match=complaint) as caught:
        read_edges(path, SIZES)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value).strip()


def test_a_file_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(EdgesFileError, match="cannot be read"):
        read_edges(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_good_and_every_edge_reaches_every_region(path):
    edges = read_edges(path, SIZES)
    assert len({frozenset(edge.regions) for edge in edges}) == 1


def test_unmerged_edges_hold_the_full_model():
    assert {edge.memory_bytes for edge in read_edges(EXAMPLES / "unmerged.toml", SIZES)} == {SIZES.full}


def test_default_edges_are_the_three_tiers_of_the_example_in_all_but_memory():
    given, example = default_edges(3, SIZES), read_edges(EXAMPLES / "three-tiers.toml", SIZES)
    assert [replace(edge, memory_bytes=1) for edge in given] == [replace(edge, memory_bytes=1) for edge in example]


def test_more_default_edges_repeat_the_tiers_under_their_own_names():
    edges = default_edges(5, SIZES)
    assert [edge.name for edge in edges] == ["small", "medium", "large", "small-2", "medium-2"]
    assert edges[0].memory_bytes < edges[1].memory_bytes < edges[2].memory_bytes < SIZES.full
    with pytest.raises(EdgesFileError, match="at least 1"):
        default_edges(0, SIZES)
