"""What can be wrong with what a simulation is given.

TasksError
└── SimulationInputError
    ├── ScenarioError   a scenario file: names the field and the cure
    └── ProfileError    a measured profile
"""

from __future__ import annotations

from services.tasks.errors import TasksError


class SimulationInputError(TasksError):
    """A simulation cannot be made of this."""


class ScenarioError(SimulationInputError):
    """A scenario that cannot be used; the message names the field and the cure."""


class ProfileError(SimulationInputError):
    """A measured profile that cannot be used."""
