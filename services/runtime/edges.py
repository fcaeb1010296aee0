"""Edges files: which edge servers there are, how much memory each has for weights, how fast it is, and its links from each user region.

TOML, strict: an unknown key is refused by name. Values only; starting workers is someone else's job. `infra/README.md` has the format.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from services.core.naming import nearest
from services.core.offload.values import Link, StepTimes
from services.runtime.errors import RuntimeFault

DEVICES = ("auto", "cpu", "cuda")
REGIONS = ("west", "centre", "east")
_SHARE = re.compile(r"^(?P<percent>\d+(\.\d+)?) ?%(?P<experts> experts)?$")
_EDGE_KEYS = ("name", "memory_bytes", "regions", "speed", "device", "max_batch", "max_queue", "step_times", "initial_mix")
_STEP_KEYS = tuple(field.name for field in fields(StepTimes))
_LINK_KEYS = ("latency_s", "uplink_bytes_per_s", "downlink_bytes_per_s")


class EdgesFileError(RuntimeFault):
    """An edges file that cannot be used; the message names the file, the edge, the key and the cure."""


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """What the unmerged model weighs in the dtype it is served in: against this, shares in an edges file are resolved."""

    full: int
    non_expert: int
    num_experts: int


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """One edge server as its operator describes it."""

    name: str
    regions: Mapping[str, Link]
    memory_bytes: int  # for weights
    speed: float = 1.0  # 1.0 as measured on this machine, 0.5 half as fast
    device: str = "auto"
    max_batch: int = 4
    max_queue: int = 64
    step_times: StepTimes | None = None  # of the device that is emulated, instead of `speed`
    initial_mix: Mapping[str, float] = field(default_factory=dict)  # shares by task type; empty: led by the task type of that number
    number: int = 0  # among the edges of its file, from 0; replicas of a description go on after the last


def home_region(edge: EdgeConfig) -> str:
    """The region whose users are nearest to this edge."""
    return min(sorted(edge.regions), key=lambda region: edge.regions[region].latency_s)


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """Memory as a share of a model: of all its bytes, or of its experts beside everything that is none."""

    text: str
    share: float
    of_experts: bool

    def of(self, sizes: ModelBytes) -> int:
        if not self.of_experts:
            return round(self.share * sizes.full)
        # Index maps and the like weigh a little besides the experts; half an expert of slack holds them without making room for one more.
        expert_bytes = (sizes.full - sizes.non_expert) / sizes.num_experts
        return min(sizes.full, sizes.non_expert + round((round(self.share * sizes.num_experts) + 0.5) * expert_bytes))


@dataclass(frozen=True, slots=True)
class DescribedEdge:
    """An edge as its file describes it: how many bytes a share of memory is, only the model tells."""

    name: str
    memory: int | MemoryShare
    with_bytes: Callable[[int], EdgeConfig]
    number: int  # among the `num_edges` of its file, from 0
    num_edges: int

    @property
    def needs_model(self) -> bool:
        return isinstance(self.memory, MemoryShare)

    def resolved(self, sizes: ModelBytes | None) -> EdgeConfig:
        if isinstance(self.memory, int):
            return self.with_bytes(self.memory)
        if sizes is None:
            raise EdgesFileError(
                f"edge {self.name!r}: memory_bytes: {self.memory.text!r} is a share and the model is not known here; give a number of bytes"
            )
        return self.with_bytes(self.memory.of(sizes))


def read_memory(value: object) -> int | MemoryShare:
    """A number of bytes, "40%" of the full model's bytes, or "40% experts": all that is no expert, and that share of the experts."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value <= 0:
            raise EdgesFileError(f"memory_bytes: must be above 0, not {value}")
        return value
    match = _SHARE.match(value) if isinstance(value, str) else None
    if match is None:
        raise EdgesFileError(f'memory_bytes: must be a number of bytes, "25%" of the full model or "25% experts", not {value!r}')
    share = float(match["percent"]) / 100
    if not 0 < share <= 1:
        raise EdgesFileError(f"memory_bytes: {value!r} is not in (0 %, 100 %]")
    return MemoryShare(match[0], share, match["experts"] is not None)


def read_edges(path: Path, sizes: ModelBytes | None = None) -> tuple[EdgeConfig, ...]:
    """All edges of a file, or an `EdgesFileError`."""
    described = described_edges(path)
    try:
        return tuple(edge.resolved(sizes) for edge in described)
    except EdgesFileError as error:
        raise EdgesFileError(f"{path}: {error}") from None


def described_edges(path: Path) -> tuple[DescribedEdge, ...]:
    """All edges of a file, whether or not the model is known, or an `EdgesFileError`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgesFileError(f"{path}: cannot be read ({error.strerror or error}); give the path of an edges file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EdgesFileError(f"{path}: not TOML ({error})") from error
    try:
        _refuse_unknown(document, ("edges",), "the file")
        entries = document.get("edges")
        if not isinstance(entries, list) or not entries:
            raise EdgesFileError("edges: missing; write one [[edges]] table for each edge server")
        edges = tuple(_edge(entry, n, len(entries)) for n, entry in enumerate(entries))
        _refuse_repeated(edges)
    except EdgesFileError as error:
        raise EdgesFileError(f"{path}: {error}") from None
    return edges


def default_edges(num_edges: int, sizes: ModelBytes) -> tuple[EdgeConfig, ...]:
    """Unlike edges: small, medium, large in turn, the small ones slow and few-slotted, each nearest to another region."""
    if num_edges < 1:
        raise EdgesFileError(f"edges: must be at least 1, not {num_edges}")
    tiers = (("small", 0.22, 0.5, 2), ("medium", 0.30, 0.75, 4), ("large", 0.37, 1.0, 4))  # share of the experts, speed, slots
    edges = []
    for n in range(num_edges):
        tier, memory, speed, max_batch = tiers[n % len(tiers)]
        name = tier if n < len(tiers) else f"{tier}-{n // len(tiers) + 1}"
        links = {region: _link_over(abs(n % len(REGIONS) - place)) for place, region in enumerate(REGIONS)}
        edges.append(
            EdgeConfig(name, links, MemoryShare(f"{memory:.0%} experts", memory, True).of(sizes), speed, max_batch=max_batch, number=n)
        )
    return tuple(edges)


def _link_over(distance: int) -> Link:
    """A link to an edge in the same region, the next or the one after."""
    latency_s, rate = ((0.005, 2.5e6), (0.04, 1.25e6), (0.08, 0.6e6))[distance]
    return Link(latency_s, rate, 2 * rate)


def _edge(entry: object, position: int, num_edges: int) -> DescribedEdge:
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"edges[{position}]" if not isinstance(name, str) else f"edge {name!r}"
    try:
        if not isinstance(entry, dict):
            raise EdgesFileError("must be a table")
        _refuse_unknown(entry, _EDGE_KEYS, "an edge")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise EdgesFileError(f"name: must be 1 to 63 letters, digits, dots, dashes or underscores, not {name!r}")
        if "memory_bytes" not in entry:
            raise EdgesFileError('memory_bytes: missing; give bytes, or a share of the model such as "25%"')
        memory = read_memory(entry["memory_bytes"])
        edge = EdgeConfig(
            name=name,
            regions=_regions(entry.get("regions")),
            memory_bytes=0,
            speed=_number(entry, "speed", 1.0, 0.0),
            device=_device(entry.get("device", "auto")),
            max_batch=_whole(entry, "max_batch", 4),
            max_queue=_whole(entry, "max_queue", 64),
            step_times=_step_times(entry),
            initial_mix=_mix(entry.get("initial_mix", {})),
            number=position,
        )
        return DescribedEdge(name, memory, lambda num_bytes: replace(edge, memory_bytes=num_bytes), position, num_edges)
    except EdgesFileError as error:
        raise EdgesFileError(f"{where}: {error}") from None


def _regions(value: object) -> dict[str, Link]:
    if not isinstance(value, dict) or not value:
        raise EdgesFileError("regions: missing; write [edges.regions.NAME] with " + ", ".join(_LINK_KEYS))
    links = {}
    for region, table in value.items():
        if not isinstance(table, dict):
            raise EdgesFileError(f"regions.{region}: must be a table with {', '.join(_LINK_KEYS)}")
        _refuse_unknown(table, _LINK_KEYS, f"regions.{region}")
        missing = [key for key in _LINK_KEYS if key not in table]
        if missing:
            raise EdgesFileError(f"regions.{region}.{missing[0]}: missing")
        links[region] = Link(
            latency_s=_number(table, "latency_s", 0.0, -1e-12, f"regions.{region}."),
            uplink_bytes_per_s=_number(table, "uplink_bytes_per_s", 0.0, 0.0, f"regions.{region}."),
            downlink_bytes_per_s=_number(table, "downlink_bytes_per_s", 0.0, 0.0, f"regions.{region}."),
        )
    return links


def _step_times(entry: Mapping[str, object]) -> StepTimes | None:
    table = entry.get("step_times")
    if table is None:
        return None
    if "speed" in entry:
        raise EdgesFileError("step_times: this edge has a speed too; leave one of them out")
    if not isinstance(table, dict):
        raise EdgesFileError("step_times: must be a table with " + ", ".join(_STEP_KEYS))
    _refuse_unknown(table, _STEP_KEYS, "step_times")
    missing = [key for key in _STEP_KEYS if key not in table]
    if missing:
        raise EdgesFileError(f"step_times.{missing[0]}: missing")
    return StepTimes(**{key: _number(table, key, 0.0, -1e-12, "step_times.") for key in _STEP_KEYS})


def _mix(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise EdgesFileError("initial_mix: must be a table of shares by task type")
    shares = {task_type: _number(value, task_type, 0.0, -1e-12, "initial_mix.") for task_type in value}
    if shares and abs(sum(shares.values()) - 1) > 1e-6:
        raise EdgesFileError(f"initial_mix: shares must sum to 1, not {sum(shares.values()):g}")
    return shares


def _device(value: object) -> str:
    if value not in DEVICES:
        raise EdgesFileError(f"device: must be one of {', '.join(DEVICES)}, not {value!r}")
    return str(value)


def _number(table: Mapping[str, object], key: str, default: float, above: float, prefix: str = "") -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
        raise EdgesFileError(f"{prefix}{key}: must be a number {'from 0' if above < 0 else 'above 0'}, not {value!r}")
    return float(value)


def _whole(table: Mapping[str, object], key: str, default: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EdgesFileError(f"{key}: must be a whole number from 1, not {value!r}")
    return value


def _refuse_unknown(table: Mapping[str, object], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in known:
            cure = nearest(key, known, f"known are {', '.join(known)}")
            raise EdgesFileError(f"{key}: unknown key of {what}; {cure}")


def _refuse_repeated(edges: tuple[DescribedEdge, ...]) -> None:
    names = [edge.name for edge in edges]
    for name in names:
        if names.count(name) > 1:
            raise EdgesFileError(f"name: {name!r} is used twice; every edge needs its own")
