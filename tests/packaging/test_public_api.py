"""What users may import is what a tracked file says."""

from __future__ import annotations

import safeguard
from tests.packaging import public_api


def test_the_public_api_is_the_one_that_is_tracked() -> None:
    message = (
        "the public API changed; if that is meant, run python -m tests.packaging.public_api and add a changelog entry to "
        "CHANGELOG.md"
    )
    assert public_api.written() == public_api.FILE.read_text(encoding="utf-8"), message


def test_completion_offers_the_public_names() -> None:
    assert dir(safeguard) == sorted(safeguard.__all__)


def test_an_author_of_erasers_needs_about_twenty_names() -> None:
    from safeguard import sdk

    assert len(sdk.__all__) <= 22
