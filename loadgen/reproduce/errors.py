"""Errors of reproduction.

SimulationInputError (loadgen.simulator)
└── ExperimentError   an experiment's name or option that cannot be used; the message names it and the cure
"""

from __future__ import annotations

from loadgen.simulator.errors import SimulationInputError


class ExperimentError(SimulationInputError):
    """An experiment's name or option that cannot be used."""
