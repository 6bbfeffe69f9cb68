"""Lends these tests a store, a server, and the modules beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safeguard.feedback import FeedbackStore
from safeguard.feedback.server import FeedbackServer
from safeguard.feedback.session import FeedbackSession
from tests.support.feedback_samples import filled


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    """Six pictures in which people are asked about blood."""
    return filled(tmp_path / "store", 6)


@pytest.fixture
def digests(store: FeedbackStore) -> list[str]:
    return [item.image for item in store.items("blood")]


@pytest.fixture
def serve() -> Iterator[Callable[..., FeedbackServer]]:
    """Serves a store to ``who`` until the test ends."""
    running: list[FeedbackServer] = []

    def start(store: FeedbackStore, who: str = "ana", **options: object) -> FeedbackServer:
        server = FeedbackServer(FeedbackSession(store, who), **options)  # type: ignore[arg-type]
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
