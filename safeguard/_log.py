"""Log lines: structlog on top of the standard ``logging``, silent unless the application configures ``logging``.

An event has a name and keys that stay the same between minor versions; ``docs/logging.md`` lists them. As text a record reads
``event key=value``. The name and each key are attributes of the record too, which is where formatters for JSON look, and
structlog's ``ExtraAdder``. No key ever holds prompt text. What the application set for structlog is neither read nor changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, cast

import structlog

ROOT: Final = "safeguard"
_STRUCTLOG_FRAMES: Final = 3  # between a line of ours and the standard logger, so that a record names our line
_render: Final = structlog.processors.LogfmtRenderer(bool_as_flag=False)

logging.getLogger(ROOT).addHandler(logging.NullHandler())  # else ``logging`` would print warnings to stderr by itself


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a part of the package, such as ``safeguard.audit``. It writes to the standard logger of that name.

    Args:
        name: ``safeguard.`` and the name of the part.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast(structlog.stdlib.BoundLogger, logger)


def _to_record(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the standard logger is called with. ``exc_info`` is its own word, not a key of the event."""
    exc_info = event.pop("exc_info", None)
    keys = {"event": event.pop("event"), **event}
    return (_Text(keys),), {"exc_info": exc_info, "extra": keys, "stacklevel": _STRUCTLOG_FRAMES + 1}


class _Text:
    """An event as a line of text, made only where a handler asks for it."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self._keys = keys

    def __str__(self) -> str:
        values = {key: _word(value) for key, value in self._keys.items() if key != "event"}
        return f"{self._keys['event']} {_render(None, '', values)}".rstrip()


def _word(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{_word(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(str(_word(part)) for part in value)
    return value
