"""Privacy: what of a prompt reaches a record in each capture mode."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeguard.audit import Decision, MemorySink
from safeguard.audit.redact import redact
from safeguard.errors import AuditError

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Make = Callable[..., Decision]
KEY = b"k" * 32


def test_by_default_a_prompt_stands_as_its_keyed_hmac(make_decision: Make) -> None:
    (record,) = MemorySink(key=KEY).append([make_decision("a red rose")])
    assert record["subject"]["prompt_hmac"] == hmac.new(KEY, b"a red rose", hashlib.sha256).hexdigest()
    assert (record["redacted"], record["masked"]) == ([], ["/subject/prompt"])
    assert "rose" not in json.dumps(record)


def test_none_drops_even_the_hmac_and_says_so(make_decision: Make) -> None:
    (record,) = MemorySink(key=KEY).append([make_decision("a red rose")], capture="none")
    assert record["subject"] == {
        "prompt_hmac": None, "prompt_key": None, "prompt_chars": 10, "source": "prompt", "row": 0,
    }  # fmt: skip
    assert (record["redacted"], record["masked"]) == (["/subject/prompt", "/subject/prompt_hmac"], [])


def test_redacted_keeps_the_text_without_the_person(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision("a card for jo@example.org")], capture="redacted")
    assert record["subject"]["prompt"] == "a card for [email]"
    assert record["masked"] == ["/subject/prompt"]


def test_full_keeps_all(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision("a card for jo@example.org")], capture="full")
    assert record["subject"]["prompt"] == "a card for jo@example.org"
    assert (record["redacted"], record["masked"]) == ([], [])


@pytest.mark.parametrize("capture", ["none", "hmac", "redacted", "full"])
def test_without_a_prompt_nothing_is_masked(make_decision: Make, capture: str) -> None:
    (record,) = MemorySink().append([make_decision(None)], capture=capture)
    assert record["subject"]["prompt_hmac"] is None
    assert record["subject"]["prompt_chars"] is None
    assert (record["redacted"], record["masked"]) == ([], [])


def test_an_unknown_mode_is_refused(make_decision: Make) -> None:
    with pytest.raises(AuditError, match="capture must be one of none, hmac, redacted, full"):
        MemorySink().append([make_decision()], capture="some")


def test_two_keys_tell_themselves_apart_in_the_record(make_decision: Make) -> None:
    subjects = [MemorySink(key=key).append([make_decision()])[0]["subject"] for key in (KEY, b"j" * 32)]
    assert subjects[0]["prompt_key"] != subjects[1]["prompt_key"]
    assert subjects[0]["prompt_hmac"] != subjects[1]["prompt_hmac"]


def test_a_short_key_is_refused() -> None:
    with pytest.raises(AuditError, match="at least 16 bytes"):
        MemorySink(key=b"short")


def test_a_failing_redactor_tells_nothing_of_the_prompt(make_decision: Make) -> None:
    def bad(prompt: str) -> str:
        raise RuntimeError(prompt)

    with pytest.raises(AuditError, match="RuntimeError") as caught:
        MemorySink(redact=bad).append([make_decision("secret words")], capture="redacted")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("prompt", "redacted"),
    [
        ("a red rose", "a red rose"),
        ("A red rose. Soft light", "A red rose. Soft light"),
        ("3 cats in 4k", "3 cats in 4k"),
        ("call +49 (30) 123-456 now", "call [number] now"),
        ("Jane Doe on a horse", "[name] [name] on a horse"),
        ("portrait of Jane Doe, oil", "portrait of [name] [name], oil"),
        ("portrait of Élodie", "portrait of [name]"),
        ("ein mädchen im garten", "ein mädchen im garten"),
        ("一只猫", "一只猫"),
        ('a sign that says "Anna, call me"', "a sign that says [quote]"),
        ("like https://example.org/u/7?x=1 by @jo_doe", "like [url] by [handle]"),
    ],
)
def test_redaction_by_rules(prompt: str, redacted: str) -> None:
    assert redact(prompt) == redacted


@CALM
@given(st.from_regex(r"[a-z]{1,20}@[a-z]{1,20}\.[a-z]{2,6}", fullmatch=True), st.text(), st.text())
def test_no_mail_address_is_left(address: str, before: str, after: str) -> None:
    assert address not in redact(f"{before} {address} {after}")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a", "1 ", "“", "Aa ", ".  ", "@", "1(", '"', "http://", "[", "A", " "])
def test_redaction_of_a_hostile_prompt_ends(piece: str) -> None:
    assert redact(piece * (300_000 // len(piece))) is not None
