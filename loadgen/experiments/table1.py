"""Table I: what a model merged for one task scores on every task. Ours is one teacher of all tasks; the paper's seems to be fine-tuned."""

from __future__ import annotations

from loadgen.experiments import Experiment
from loadgen.experiments._paper import printed
from loadgen.experiments._profiles import Profile, profiles
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_every_point, holds
from loadgen.reproduce.values import Cell, Claim, Heat, Plot, Result, Table

TASKS = ("WinoGrande", "WikiQA", "SQuAD", "COPA")


def run(context: Context) -> Result:
    paper = printed("table1")
    theirs = {row: dict(zip(TASKS, paper[row], strict=True)) for row in TASKS}  # data -> merged for -> accuracy
    tables, panels = [_table("paper", "Table I of the paper", TASKS, theirs)], [_heat("the paper", TASKS, theirs)]
    gaps = []
    for profile in profiles():
        for share in profile.shares():
            ours = _measured(profile, share)
            gaps.append((profile, share, ours))
            tables.append(
                _table(f"{profile.name}_{round(100 * share)}", _title(profile, share), profile.task_types, ours),
            )
        least = profile.shares()[0]
        panels.append(_heat(_title(profile, least), profile.task_types, _measured(profile, least)))
    plot = Plot(
        "accuracy",
        "Accuracy of models merged for one task",
        "A row is the data, a column the task that the model was merged for. The diagonal is the task itself.",
        tuple(panels),
        across=2,
    )
    return Result(_findings(theirs, gaps), tables, [plot], _claims(theirs, gaps))


def _measured(profile: Profile, share: float) -> dict[str, dict[str, float]]:
    merged = {t: profile.merged_for(t, share) for t in profile.task_types}
    return {data: {t: merged[t][data] for t in profile.task_types} for data in profile.task_types}


def _title(profile: Profile, share: float) -> str:
    return f"{profile.name}, {share:.0%} of the experts"


def _table(name: str, title: str, tasks: tuple[str, ...], scores: dict[str, dict[str, float]]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple((data, *(scores[data][t] for t in tasks)) for data in tasks)
    return Table(name, title, ("data", *(f"merged for {t}" for t in tasks)), rows)


def _heat(title: str, tasks: tuple[str, ...], scores: dict[str, dict[str, float]]) -> Heat:
    return Heat(title, "merged for", "data", tasks, tasks, tuple(tuple(scores[data][t] for t in tasks) for data in tasks), numbers=True)


def _best(scores: dict[str, dict[str, float]]) -> int:
    """Rows whose own model is the best of the row."""
    return sum(max(row, key=lambda t: row[t]) == data for data, row in scores.items())


def _gap(scores: dict[str, dict[str, float]]) -> tuple[float, float]:
    """Mean of the diagonal, and of what is off it."""
    own = [row[data] for data, row in scores.items()]
    others = [value for data, row in scores.items() for t, value in row.items() if t != data]
    return sum(own) / len(own), sum(others) / len(others)


Gaps = list[tuple[Profile, float, dict[str, dict[str, float]]]]


def _findings(theirs: dict[str, dict[str, float]], gaps: Gaps) -> list[str]:
    own, others = _gap(theirs)
    ours = "; ".join(f"{_title(profile, share)}: {_gap(scores)[0]:.2f} and {_gap(scores)[1]:.2f}" for profile, share, scores in gaps)
    return [
        f"In the paper a merged model scores {own:.2f} on its own task and {others:.2f} on others. Ours, on the same: {ours}.",
        "The paper's figures look like models that were fine-tuned for one task and then merged, scored on answers made valid by "
        "chance: half of a two-way choice is guessed right.",
        "Ours is one model of all tasks, merged for one of them and nothing else: what is off the diagonal there is lost, not guessed.",
    ]


def _claims(theirs: dict[str, dict[str, float]], gaps: Gaps) -> list[Claim]:
    hits, points = sum(_best(scores) for _, _, scores in gaps), sum(len(scores) for _, _, scores in gaps)
    judged = at_every_point(hits, points)
    best = Claim(
        "own-task-best",
        "Table I",
        "a model merged for a task is the best of all merged models on that task",
        f"{_best(theirs)} of {len(theirs)} tasks",
        f"{hits} of {points} (tasks and memory sizes)",
        judged.verdict,
        judged.rule,
    )
    chance = [row[t] for data, row in theirs.items() if data in ("WinoGrande", "WikiQA") for t in row if t != data]
    off = max(abs(value - 0.5) for value in chance)
    same = holds(off > 0.1, "contradicted: every score off the diagonal of the two-way tasks lies within 0.1 of chance (0.5)")
    merged = Claim(
        "table1-is-merging",
        "Table I",
        "the gaps between merged models come from merging",
        f"off the diagonal {min(chance):.2f} to {max(chance):.2f} on two-way tasks",
        f"at most {off:.2f} from chance",
        same.verdict,
        same.rule,
        "Invalid answers seem to be replaced by a random label, as in the released M-SMoE scorer: such models were tuned for another task.",
    )
    return [best, merged]


EXPERIMENT = Experiment("Table I: models merged for one task, on every task", "Accuracy of each merged model on each task.", run)
