"""Modular pipelines: their blocks say what a call needs, which no signature does, and hand on what they make in a state."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

from safeguard.errors import CapabilityError

Call = Callable[..., Any]
Tell = Callable[[str, Any], None]  # the name of what a block made, and what it made

KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY
_LOG: Final = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
_trying: Final[ContextVar[bool]] = ContextVar("safeguard_trying", default=False)
_KEEPS_STATE: Final = ("scheduler", "guider")  # components that remember where in a run they are


def is_modular(base: type) -> bool:
    return hasattr(base, "blocks") and hasattr(base, "default_call_parameters")


def signature_of(pipe: Any, base: type) -> inspect.Signature:
    """What ``base.__call__`` takes: for a modular pipeline also the inputs that its blocks declare."""
    signature = inspect.signature(base.__call__)
    if not is_modular(base):
        return signature
    known = [parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    rest = [parameter for parameter in signature.parameters.values() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    taken = {parameter.name for parameter in known}
    inputs = {
        parameter.name: inspect.Parameter(
            parameter.name, KEYWORD, default=inspect.Parameter.empty if parameter.required else parameter.default
        )
        for parameter in pipe.blocks.inputs
        if parameter.name and parameter.name not in taken
    }
    return signature.replace(parameters=[*known, *inputs.values(), *rest])


def require_prompt(pipe: Any, base: type) -> None:
    """Raises CapabilityError for blocks that are given their text as embeddings: such texts cannot be read, nor tried."""
    if is_modular(base) and "prompt" not in signature_of(pipe, base).parameters:
        raise CapabilityError(
            f"the blocks of this {base.__name__} take no prompt, so nothing is known of the texts that it is given; protect "
            "the pipeline together with the blocks that encode its prompt",
            pipeline=base.__name__,
            missing="prompt",
        )


def given_in(state: Any, names: Iterable[str]) -> dict[str, Any]:
    """What of these inputs the state of an earlier call brings; of what else stands in it, blocks make new."""
    values = getattr(state, "values", None)
    return {name: values[name] for name in names if name in values} if isinstance(values, Mapping) else {}


def guidance_of(pipe: Any) -> float | None:
    """The lowest scale of the pipeline's guiders, which a call does not say. None where it has none."""
    parts = getattr(pipe, "components", {})
    scales = [getattr(part, "guidance_scale", None) for name, part in parts.items() if _is_guider(name)]
    return min((float(scale) for scale in scales if isinstance(scale, (int, float))), default=None)


def _is_guider(name: str) -> bool:
    return name.endswith("guider") or name.startswith("guider")


def set_apart(twin: Any, base: type, guidance: float | None) -> None:
    """Give a shallow copy of a pipeline, made for a trial, its own of what changes in a run; its guiders get the guidance."""
    for name, part in twin.components.items():
        if part is not None and (name.startswith(_KEEPS_STATE) or _is_guider(name)):
            twin.__dict__[name] = own = copy.deepcopy(part)
            if _is_guider(name) and guidance is not None and hasattr(own, "guidance_scale"):
                own.guidance_scale = guidance
    if is_modular(base):
        twin.__dict__["_blocks"] = blocks = twin.blocks
        silence(blocks)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """A trial goes on inside, which may fail: modular pipelines log a failure with a traceback for each block."""
    _LOG.addFilter(_worth_logging)
    token = _trying.set(True)
    try:
        yield
    finally:
        _trying.reset(token)


def _worth_logging(record: logging.LogRecord) -> bool:
    return not _trying.get()


def silence(block: Any) -> None:
    """Show no progress bars: the pipeline's own setting reaches its outermost blocks only."""
    for part in block.sub_blocks.values():
        if hasattr(part, "set_progress_bar_config"):
            part.set_progress_bar_config(disable=True)
        silence(part)


def told(base: type, tell: Tell) -> Call:
    """``base.__call__`` that tells of all that its blocks put into the state, which it gives back whole."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(base.__call__).bind(self, *args, **kwargs)
        bound.arguments["state"] = _watched(bound.arguments.get("state"), tell)
        bound.arguments["output"] = None
        result = base.__call__(*bound.args, **bound.kwargs)
        result.__class__ = getattr(type(result), "_safeguard_plain", type(result))
        return result

    return run


def _watched(state: Any, tell: Tell) -> Any:
    """A state that tells of what is put into it. What is no state of diffusers stays as it is, for the pipeline to refuse."""
    from diffusers.modular_pipelines.modular_pipeline import PipelineState

    state = PipelineState() if state is None else state
    if not isinstance(state, PipelineState):
        return state
    plain = type(state)

    def put(self: Any, key: str, value: Any, kwargs_type: str | None = None) -> None:
        plain.set(self, key, value, kwargs_type)
        tell(key, value)

    twin = copy.copy(state)
    object.__setattr__(twin, "__class__", type(plain.__name__, (plain,), {"set": put, "_safeguard_plain": plain}))
    return twin


def picked(base: type, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call asked for of the state that it ended in."""
    wanted = inspect.signature(base.__call__).bind(None, *args, **kwargs).arguments.get("output")
    if wanted is None or state is None:
        return state
    if isinstance(wanted, (str, list, tuple)):
        return state.get(wanted)
    raise ValueError(f"Output '{wanted}' is not a valid output type")
