"""A scenario: edges, links, model, load and updates of one simulation, checked. Policies and seeds are the caller's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadgen.simulator.errors import ScenarioError
from loadgen.simulator.measured import MeasuredModel, read_profile
from loadgen.simulator.model import SimulatedModel
from loadgen.simulator.stated import StatedModel, StatedOptions
from loadgen.simulator.strict import known_only, read_table
from services.core.naming import nearest
from services.core.offload.values import Link, StepTimes

FOLDER = Path(__file__).resolve().parents[1] / "scenarios"
PROFILES = FOLDER / "profiles"
ARRIVALS = ("poisson", "bursty", "diurnal", "trace")
FIRST_MODELS = ("random", "turn", "uniform")


@dataclass(frozen=True, slots=True)
class EdgeGroup:
    """`count` edges alike. `memory_share`: the share of all experts that fits. `mix`: what the first model was merged for."""

    name: str
    count: int = 1
    memory_share: float = 0.22
    speed: float = 1.0
    max_batch: int = 4
    max_queue: int = 64
    regions: Mapping[str, Link] = field(default_factory=dict)
    mix: Mapping[str, float] | None = None
    step_times: StepTimes | None = None  # as measured on this edge, instead of the model's at `speed`

    def __post_init__(self) -> None:
        _at_least(1, count=self.count, max_batch=self.max_batch)
        _at_least(0, max_queue=self.max_queue)
        _above_zero(memory_share=self.memory_share, speed=self.speed)
        if self.memory_share > 1.0:
            raise ValueError(f"memory_share is {self.memory_share}: a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class Area:
    """Users' regions and edges at random places of a unit square (per seed): latency grows with the distance."""

    regions: int = 10
    latency_s: float = 0.005
    latency_s_per_unit: float = 0.05
    uplink_bytes_per_s: float = 1.25e6
    downlink_bytes_per_s: float = 2.5e6

    def __post_init__(self) -> None:
        _at_least(1, regions=self.regions)
        _at_least(0, latency_s=self.latency_s, latency_s_per_unit=self.latency_s_per_unit)


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start` (a share of the duration) on, tasks come in these shares; in one region, or in all."""

    start: float
    mix: Mapping[str, float]
    region: str = ""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`rate_per_s` is the mean rate, also of a trace, which is played as fast as that takes. Without phases all task types are alike.

    `moves_every_s`: a user's mean stay in a region (0: for good); users keep asking for what their first region asks for.
    """

    rate_per_s: float
    users: int = 10
    arrivals: str = "poisson"
    burst_ratio: float = 5.0
    burst_share: float = 0.2
    mean_burst_s: float = 5.0
    period_s: float = 600.0  # diurnal
    amplitude: float = 0.5  # diurnal: the rate swings by so much of its mean
    blend_s: float = 0.0  # how long a change of mix takes
    moves_every_s: float = 0.0
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise ValueError(f"arrivals is {self.arrivals!r}: choose one of {', '.join(ARRIVALS)}")
        if not 0.0 <= self.amplitude <= 1.0:
            raise ValueError(f"amplitude is {self.amplitude}: a share from 0 to 1")
        _above_zero(rate_per_s=self.rate_per_s, period_s=self.period_s)
        _at_least(1, users=self.users)
        _at_least(0, blend_s=self.blend_s, moves_every_s=self.moves_every_s)


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What an update costs: a build (while the edge serves), fetching at `fetch_bytes_per_s` (0: no time; while it serves), and loading.

    Without `beside` the edge finishes what runs, then computes nothing for `load_s`. With it loading takes as long, but tasks go on.
    """

    load_s: float = 18.0
    build_s: float | None = None  # None: as the model tells
    fetch_bytes_per_s: float = 0.0
    beside: bool = False
    min_gain: float = 0.03  # as the controller's setting; not asked of requests by raw frequencies
    report_tasks: int = 20
    report_interval_s: float = 2.0
    cool_down_s: float = 0.0

    def __post_init__(self) -> None:
        _at_least(0, load_s=self.load_s, build_s=self.build_s or 0.0, fetch_bytes_per_s=self.fetch_bytes_per_s)
        _above_zero(report_interval_s=self.report_interval_s)
        _at_least(1, report_tasks=self.report_tasks)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Servers of QoS-Quant, MoE-Load and Multi-MoE. `host_memory`: beside what an edge may hold there is memory enough for all experts, and
    a link to it; without, these servers hold a merged model where the unmerged one does not fit."""

    host_memory: bool = True
    link_bytes_per_s: float = 12e9  # of an edge with speed 1; slower edges have slower links
    preference_tasks: int = 64  # last tasks whose majority QoS-Quant's plan follows
    foreign_loss: float = 0.1  # β, assumed: share of quality lost where all tokens meet another variant's experts

    def __post_init__(self) -> None:
        _above_zero(link_bytes_per_s=self.link_bytes_per_s)
        _at_least(1, preference_tasks=self.preference_tasks)
        if not 0.0 <= self.foreign_loss <= 1.0:
            raise ValueError(f"foreign_loss is {self.foreign_loss}: a share from 0 to 1")


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    name: str
    about: str
    model: SimulatedModel
    edges: tuple[EdgeGroup, ...]
    load: LoadOptions
    duration_s: float = 600.0
    quality_scale: float = 1.0
    max_tokens: int = 1_000_000
    first_models: str = "random"
    draw_scores: bool = False  # realised scores are 0 or 1 and are sent back; without, they are expected ones and are not
    hide_task_type: bool = False  # the broker believes every type equally probable
    area: Area | None = None
    updates: UpdateOptions = field(default_factory=UpdateOptions)
    runtimes: RuntimeOptions = field(default_factory=RuntimeOptions)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # options by policy
    triggers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.edges:
            raise ScenarioError(f"{self.name}: edges is missing; give at least one [[edges]]")
        if self.first_models not in FIRST_MODELS:
            raise ScenarioError(f"first_models is {self.first_models!r}: choose one of {', '.join(FIRST_MODELS)}")
        _above_zero(duration_s=self.duration_s)
        names = [group.name for group in self.edges]
        if len(set(names)) < len(names):
            raise ScenarioError(f"{self.name}: two [[edges]] have the same name; give each its own, or one a count")
        for group in self.edges:
            self._check_types(group.mix or {}, f"edges {group.name}")
        for phase in self.load.phases:
            self._check_types(phase.mix, "load.phases")
        self._check_regions()

    @property
    def num_edges(self) -> int:
        return sum(group.count for group in self.edges)

    @property
    def regions(self) -> tuple[str, ...]:
        """User regions; one without a name where the scenario has none."""
        if self.area is not None:
            return tuple(f"place-{n:02d}" for n in range(self.area.regions))
        return tuple(sorted({region for group in self.edges for region in group.regions})) or ("",)

    @property
    def changes_at_s(self) -> tuple[float, ...]:
        """Instants at which some region's mix begins to change, the start included."""
        return tuple(sorted({0.0, *(phase.start * self.duration_s for phase in self.load.phases)}))

    def _check_types(self, mix: Mapping[str, float], where: str) -> None:
        for task_type in mix:
            if task_type not in self.model.task_types:
                hint = nearest(task_type, self.model.task_types, f"the model has {', '.join(self.model.task_types)}")
                raise ScenarioError(f"{where}: task type {task_type} is unknown; {hint}")

    def _check_regions(self) -> None:
        if self.area is not None and any(group.regions for group in self.edges):
            raise ScenarioError(f"{self.name}: edges have regions and there is an [area]; leave one out")
        for phase in self.load.phases:
            if phase.region and phase.region not in self.regions:
                raise ScenarioError(f"load.phases: region {phase.region} is unknown; there are {', '.join(self.regions)}")


def names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def scenario(name_or_file: str, **overrides: Any) -> Scenario:
    """A scenario by its name, or from a file. `overrides` stand in for keys of the top table."""
    path = Path(name_or_file)
    if name_or_file in names():
        path = FOLDER / f"{name_or_file}.toml"
    elif not path.is_file():
        hint = nearest(name_or_file, names(), "it is no file either.")
        raise ScenarioError(f"scenario {name_or_file} is unknown; {hint} There are: {', '.join(names())}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: is no text; give a TOML file such as those in {FOLDER.parent.name}/{FOLDER.name}") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from error
    return _scenario({**document, **overrides}, path)


def profile(name_or_file: str, folder: Path = Path()) -> MeasuredModel:
    """A measured profile by its name, or from a file; a relative one lies in `folder`."""
    named = PROFILES / f"{name_or_file}.json"
    return read_profile(named if named.is_file() else folder / name_or_file)


_TABLES = ("model", "edges", "load", "area", "updates", "runtimes", "policies", "triggers")
_PLAIN = ("about", "duration_s", "quality_scale", "max_tokens", "first_models", "draw_scores", "hide_task_type")


def _scenario(document: dict[str, Any], path: Path) -> Scenario:
    known_only(document, (*_TABLES, *_PLAIN), str(path))
    groups = document.get("edges", [])
    if not isinstance(groups, list):
        raise ScenarioError("edges: write [[edges]], once for each kind of edge")
    made: dict[str, Any] = {
        "name": path.stem,
        "model": _model(document.get("model", {}), path.parent),
        "edges": tuple(read_table(group, EdgeGroup, f"edges[{n}]") for n, group in enumerate(groups)),
        "load": read_table(document.get("load", {}), LoadOptions, "load"),
        "area": read_table(document["area"], Area, "area") if "area" in document else None,
        "updates": read_table(document.get("updates", {}), UpdateOptions, "updates"),
        "runtimes": read_table(document.get("runtimes", {}), RuntimeOptions, "runtimes"),
    }
    for kind in ("policies", "triggers"):
        made[kind] = {name: dict(known_only(table, table, f"{kind}.{name}")) for name, table in document.get(kind, {}).items()}
    plain = {"about": "", **{key: document[key] for key in _PLAIN if key in document}}
    return read_table(plain, Scenario, path.name, **made)


def _model(table: dict[str, Any], folder: Path) -> SimulatedModel:
    """`profile = NAME|FILE` (of `profiles/`, or beside the scenario), or a table `stated`. The demo model without either."""
    known_only(table, ("profile", "stated"), "model")
    if "stated" in table and "profile" in table:
        raise ScenarioError("model: give profile or stated, not both")
    if "stated" in table:
        return StatedModel(read_table(table["stated"], StatedOptions, "model.stated"))
    return profile(str(table.get("profile", "demo")), folder)


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}: it must be {least:g} or more")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}: it must be above 0")
