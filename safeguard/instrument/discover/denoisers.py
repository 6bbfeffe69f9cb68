"""The denoisers of a pipeline: which of its components are called with text, with what, and where they read it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import TextArguments
from safeguard.instrument.discover.denoiser import Denoiser, run_eagerly
from safeguard.instrument.discover.dry_run import TOKEN_STATES, NeverCalledError
from safeguard.instrument.discover.modular import require_prompt
from safeguard.instrument.discover.sites import Site, candidates
from safeguard.instrument.discover.text_encoding import TextPath, find_text_path


@dataclass(eq=False)
class Denoisers:
    """The denoisers by name, all their text sites, and for each denoiser a way to see what it is called with."""

    parts: dict[str, Denoiser] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    ways: dict[str, tuple[TextPath, TextArguments]] = field(default_factory=dict)

    def add(self, denoiser: Denoiser, way: tuple[TextPath, TextArguments]) -> None:
        self.sites += denoiser.find(len(self.sites))
        self.parts[denoiser.name], self.ways[denoiser.name] = denoiser, way


def find_denoisers(pipe: Any, base: type, example: Mapping[str, Any]) -> Denoisers:
    """Find the denoisers of ``pipe`` by running it up to each of its components in turn, on a prompt and the ``example``.

    A component that is never called with text is none. One that no short run calls (the second of two experts) is taken for
    one by its class. Raises CapabilityError where there is none, or one cannot be understood.
    """
    require_prompt(pipe, base)
    denoisers = Denoisers()
    passed_by: dict[str, CapabilityError] = {}
    modules = candidates(pipe)
    for name, module in modules.items():
        try:
            way, values, arguments = find_text_path(pipe, base, name, functools.partial(run_eagerly, module), example)
        except CapabilityError as fault:
            if not isinstance(fault, NeverCalledError) and fault.missing != TOKEN_STATES:
                raise
            passed_by[name] = fault
            continue
        denoisers.add(Denoiser(name, module, values, arguments, way.stride), (way, arguments))
    for name in passed_by:
        mate = next((part for part in denoisers.parts.values() if type(part.module) is type(modules[name])), None)
        if mate is not None:
            denoisers.add(Denoiser(name, modules[name], mate.values, mate.text, mate.stride), denoisers.ways[mate.name])
    if not denoisers.parts:
        raise next(iter(passed_by.values()), None) or CapabilityError(
            f"{base.__name__} has no denoiser that is called with text, so there is nothing to erase; "
            "it would run unprotected, so it is refused",
            pipeline=base.__name__,
            missing="text site",
        )
    return denoisers
