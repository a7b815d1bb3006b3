# SPDX-License-Identifier: GPL-3.0-or-later
"""Blender Unified Lift: photos in, one collection of splats for each object out. Registers only."""

from importlib.util import find_spec
from types import ModuleType


def _modules() -> tuple[ModuleType, ...]:
    """What registers, in its order. Without the contract only a panel that says what is missing."""
    if find_spec("unified_lift") is None:
        from .ui import no_contract

        return (no_contract,)
    from . import preferences
    from .job import session
    from .splats import engine, picking, viewport
    from .ui import export, job_operators, operators, panels, pieces, properties

    return (
        preferences,
        properties,
        operators,
        pieces,
        export,
        job_operators,
        panels,
        viewport,
        picking,
        engine,
        session,
    )


def register() -> None:
    for module in _modules():
        module.register()


def unregister() -> None:
    for module in reversed(_modules()):
        module.unregister()
