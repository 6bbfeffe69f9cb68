"""Takes out of a prompt what points at a person. Every pattern is linear in the length of a hostile prompt."""

from __future__ import annotations

import re

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # In this order: a mail address holds a handle, a link holds numbers.
    ("[email]", re.compile(r"[^\s@<>(),;:\"']{1,64}@[^\s@<>(),;:\"']{1,255}\.[^\W\d_]{2,24}")),
    ("[url]", re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)),
    ("[handle]", re.compile(r"(?<!\w)@\w+")),
    ("[quote]", re.compile(r"\"[^\"]*\"|“[^“”]*”|«[^«»]*»")),
)
_NUMBER = re.compile(r"\+?\d[\d\s().:/-]*\d")
_WORD = re.compile(r"(?P<start>^\s*|[.!?]\s+)?(?<![\[\w])(?P<word>[^\W\d_][\w'’-]*)(?:(?=\s+(?P<next>\S))|)")


def redact(prompt: str) -> str:
    """``prompt`` without mail addresses, links, handles, quoted words, numbers of three digits or more, and capitalised
    words inside a sentence (likely names).

    Rules, not understanding: a name in small letters stays, an artist's name goes. Give ``AuditLog(redact=...)`` a
    function of your own where you need better.
    """
    for replacement, pattern in _PATTERNS:
        prompt = pattern.sub(replacement, prompt)
    return _WORD.sub(_name, _NUMBER.sub(_number, prompt))


def _number(match: re.Match[str]) -> str:
    digits = sum(char.isdigit() for char in match[0])
    return "[number]" if digits >= 3 else match[0]


def _name(match: re.Match[str]) -> str:
    """A capital at the start of a sentence means nothing, unless another capital follows."""
    begins = match["start"] is not None
    if not match["word"][0].isupper() or (begins and not (match["next"] or "").isupper()):
        return match[0]
    return (match["start"] or "") + "[name]"
