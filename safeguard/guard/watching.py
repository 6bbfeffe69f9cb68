"""A policy file that changed is swapped in by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from safeguard.errors import SafeguardError

log = structlog.get_logger("safeguard.guard")


class Watcher:
    """Watches the folders of some files in a thread, and calls ``swap`` when one of the files was written or replaced.

    ``files`` is asked again after every change, since a policy may have come to extend another file.
    """

    def __init__(self, files: Callable[[], frozenset[Path]], swap: Callable[[], object]) -> None:
        self._files = files
        self._swap = swap
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="safeguard-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        from watchfiles import watch

        while not self._stop.is_set():
            folders = {file.parent for file in self._files() if file.parent.is_dir()}
            self._ready.set()
            for changes in watch(*folders, stop_event=self._stop, debounce=50, step=20, rust_timeout=200, recursive=False):
                if not {Path(name).resolve() for _, name in changes} & self._files():
                    continue
                try:
                    self._swap()
                except SafeguardError as fault:
                    log.warning("policy not swapped, the last good one stays", reason=type(fault).__name__)
                if {file.parent for file in self._files() if file.parent.is_dir()} != folders:
                    break

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
