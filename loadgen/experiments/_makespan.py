"""Makespans on identical edges: tasks placed one by one on predictions, what no schedule can undercut, and the best there is.

Pure functions on arrays. An edge runs one task at a time, first in, first out; transfers are left out, as in the paper's proofs
(Sec. IV). What is claimed of these numbers, and what is true, is the business of `bounds.py`.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog  # type: ignore[attr-defined,unused-ignore]  # re-exported without saying so

from loadgen.simulator.optimum import Case, optimum

Seconds = NDArray[np.float64]  # (num_tasks,)
Places = NDArray[np.int64]  # (num_tasks,) index of the edge of each task
Worth = NDArray[np.float64]  # (num_tasks, num_edges) seconds that the quality of that edge is worth: alpha · quality_scale · quality

TIE_S = 1e-9


def competitive_ratio(mu: float, num_switches: int = 0) -> float:
    """What Theorem 2 claims of ONTO without switches, Proposition 1 of JTOM with them: 2(mu + d)/(mu + 1)."""
    return 2.0 * (mu + num_switches) / (mu + 1.0)


def proven_ratio(mu: float, num_tasks: int, num_edges: int) -> float:
    """What holds for true predictions, all tasks there at once and a mean time of (mu + 1)/2 · t_min: the smaller of two bounds.

    List scheduling ends by Σt/S + (1 - 1/S) · max t (Graham, 1966). No schedule ends before Σt/S or max t, so the ratio is at most
    2 - 1/S; and Σt = R(mu + 1)/2 · t_min with max t <= mu · t_min gives 1 + 2 mu (S - 1)/(R (mu + 1)).
    """
    return min(2.0 - 1.0 / num_edges, 1.0 + 2.0 * mu * (num_edges - 1) / (num_tasks * (mu + 1.0)))


def least_quality_ratio(mu: float, num_edges: int) -> float:
    """The smallest beta = q_max/q_min of Assumption 2 (S <= mu <= 2 beta S - 1); infinite where S exceeds mu. Never below 1."""
    return max((mu + 1.0) / (2.0 * num_edges), 1.0) if num_edges <= mu else float("inf")


def place_by_load(predicted_s: Seconds, num_edges: int) -> Places:
    """ONTO without quality and without feedback: each task to the edge with the least predicted load, then the lowest index."""
    loads = [(0.0, edge) for edge in range(num_edges)]
    places = np.empty(len(predicted_s), dtype=np.int64)
    for task, time_s in enumerate(predicted_s.tolist()):
        load_s, edge = loads[0]
        places[task] = edge
        heapq.heapreplace(loads, (load_s + time_s, edge))
    return places


def place_by_cost(predicted_s: Seconds, worth_s: Worth) -> Places:
    """ONTO without feedback (paper, Algorithm 1): least predicted load + time - worth; ties by least load, then lowest index."""
    load_s = np.zeros(worth_s.shape[1])
    places = np.empty(len(predicted_s), dtype=np.int64)
    for task, time_s in enumerate(predicted_s):
        cost = load_s - worth_s[task]  # the task's own time is the same on every edge
        tied = np.flatnonzero(cost <= cost.min() + TIE_S)
        places[task] = tied[load_s[tied].argmin()]
        load_s[places[task]] += time_s
    return places


def loads_s(times_s: Seconds, places: Places, num_edges: int) -> Seconds:
    """(num_edges,) the time that each edge is given."""
    load_s = np.zeros(num_edges)
    np.add.at(load_s, places, times_s)
    return load_s


def makespan_s(times_s: Seconds, places: Places, num_edges: int) -> float:
    """When the last of tasks that were all there at once ends."""
    return float(loads_s(times_s, places, num_edges).max())


def longest_first_s(times_s: Seconds, num_edges: int) -> float:
    """A makespan that is reached with all times known: longest task first. At least the optimum."""
    ordered = np.sort(times_s)[::-1]
    return makespan_s(ordered, place_by_load(ordered, num_edges), num_edges)


def weighted_cost(times_s: Seconds, places: Places, worth_s: Worth) -> float:
    """Equation (1) of the paper: makespan less what the qualities are worth."""
    return makespan_s(times_s, places, worth_s.shape[1]) - float(worth_s[np.arange(len(places)), places].sum())


def least_makespan_s(times_s: Seconds, num_edges: int, arrived_at_s: Seconds | None = None) -> float:
    """No schedule ends before: what arrives from an instant on, spread evenly from there; any task, begun as it arrives."""
    if arrived_at_s is None:
        return float(max(times_s.sum() / num_edges, times_s.max()))
    order = np.argsort(arrived_at_s, kind="stable")
    still_to_come_s = np.cumsum(times_s[order][::-1])[::-1]
    return float(max((arrived_at_s[order] + still_to_come_s / num_edges).max(), (arrived_at_s + times_s).max()))


def optimal_makespan_s(times_s: Seconds, num_edges: int) -> float:
    """The least makespan of tasks that are all there at once, exact: branch and bound, long tasks first. For up to about 15 tasks."""
    ordered = sorted(times_s.tolist(), reverse=True)
    bound_s = least_makespan_s(times_s, num_edges)
    best_s = longest_first_s(times_s, num_edges)

    def place(task: int, loads: list[float]) -> None:
        nonlocal best_s
        if task == len(ordered):
            best_s = max(loads)
            return
        for load_s in sorted(set(loads)):  # edges with the same load are the same
            if load_s + ordered[task] >= best_s - TIE_S or best_s <= bound_s + TIE_S:
                return
            edge = loads.index(load_s)
            place(task + 1, [*loads[:edge], load_s + ordered[task], *loads[edge + 1 :]])

    place(0, [0.0] * num_edges)
    return best_s


def optimal_places(times_s: Seconds, worth_s: Worth, arrived_at_s: Seconds | None = None) -> tuple[float, Places]:
    """The least weighted cost, from instant 0 on, and an assignment that has it. For about a dozen tasks, in order of arrival."""
    num_tasks, num_edges = worth_s.shape
    arrived = np.zeros(num_tasks) if arrived_at_s is None else arrived_at_s
    everywhere_s = np.repeat(times_s[:, None], num_edges, axis=1)
    found = optimum(Case(arrived, everywhere_s, worth_s, np.ones(num_tasks)), "weighted_cost")
    return found.value + float(arrived[0]), found.edge


def bracketed_optimum(times_s: Seconds, worth_s: Worth) -> tuple[float, float]:
    """Two costs with the optimum of eq. (1) between them: of tasks that may be cut in pieces, and of those pieces rounded.

    The linear program has a variable a task and edge, by rows, then the makespan. A corner of it cuts fewer than num_edges tasks, so the
    two costs are close when there are many tasks to an edge.
    """
    num_tasks, num_edges = worth_s.shape
    whole = np.kron(np.eye(num_tasks), np.ones(num_edges))
    spent_s = np.kron(times_s, np.eye(num_edges))
    result = linprog(  # type: ignore[no-untyped-call,unused-ignore]
        np.append(-worth_s.ravel(), 1.0),
        A_ub=np.column_stack([spent_s, -np.ones(num_edges)]),
        b_ub=np.zeros(num_edges),
        A_eq=np.column_stack([whole, np.zeros(num_tasks)]),
        b_eq=np.ones(num_tasks),
    )
    if not result.success:
        raise ArithmeticError(f"relaxed optimum of {num_tasks} tasks on {num_edges} edges: {result.message}")
    places = result.x[:-1].reshape(worth_s.shape).argmax(axis=1)
    return float(result.fun), weighted_cost(times_s, places, worth_s)


def misleading_order(mu: int, num_edges: int, rounds: int) -> tuple[Seconds, Seconds]:
    """Times and predictions in units of t_min, half of either 1 and half mu, in an order that sends all long tasks to one edge.

    A round is S - 1 short tasks that look long, which fill all edges but the last, then mu long ones that look short, which fill that
    one and no other. Short ones at the end make the halves even. Ends S mu/(mu + 1) times as late as an even spread, however many
    rounds there are. Needs num_edges <= mu + 1, as Assumption 2 grants.
    """
    if num_edges > mu + 1:
        raise ValueError(f"num_edges is {num_edges}: at most mu + 1 = {mu + 1}")
    short, long = (1.0, float(mu)), (float(mu), 1.0)  # its time, and what it looks like
    told = rounds * ((num_edges - 1) * [short] + mu * [long]) + rounds * (mu - num_edges + 1) * [short]
    times, predicted = np.array(told).T
    return times, predicted


def late_long_task(mu: float, num_edges: int, num_tasks: int) -> Seconds:
    """Times in units of t_min, mean (mu + 1)/2, on which ONTO that knows every time still ends late: the longest task comes last.

    All but one edge get a task of length x, the last edge fills up to x with short ones, then a task of mu comes on top. The optimum
    puts the short ones on the x's. Raises ValueError where lengths would leave [1, mu].
    """
    num_short = num_tasks - num_edges
    filled = (num_tasks * (mu + 1.0) / 2.0 - mu) / num_edges
    if not (1 <= num_short <= num_edges - 1 and filled / num_short >= 1.0 and filled <= mu):
        raise ValueError(f"num_tasks is {num_tasks}: on {num_edges} edges with mu = {mu:g} there is no such instance")
    return np.array([filled] * (num_edges - 1) + [filled / num_short] * num_short + [mu])
