"""A policy file that changed is swapped in by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from safeguard.guard.log_events import policy_reload_failed

LOOK_AGAIN = 200  # milliseconds after which the files are looked at, whether or not the system told of a change


class Watcher:
    """Watches a policy file and the files that it extends, in a thread, and swaps the policy in when one of them changed.

    The system's notices only make it quick: what counts is whether a file is another one than before, so that a replaced
    link, a folder that came later or a lost notice make no difference.
    """

    def __init__(self, source: Path, swap: Callable[[], Iterable[Path]]) -> None:
        """``swap`` gives the files that the new policy was read from. It is called once here, and may raise."""
        self._source = source
        self._swap = swap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="safeguard-watch", daemon=True)
        self._files = {source}
        self._failed = False
        self._swap_in()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for a swap that it has begun."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        from watchfiles import watch

        while not self._stop.is_set():
            folders = self._folders()
            if not folders:
                self._stop.wait(LOOK_AGAIN / 1e3)
                self._look()
                continue
            for changes in watch(
                *folders,
                stop_event=self._stop,
                debounce=50,
                step=20,
                rust_timeout=LOOK_AGAIN,
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            ):
                self._look(noticed=bool(changes))
                if self._stop.is_set() or self._folders() != folders:
                    break

    def _folders(self) -> set[Path]:
        return {file.parent for file in self._files if file.parent.is_dir()}

    def _look(self, *, noticed: bool = False) -> None:
        """Swap if a file changed. After a failure any change nearby is reason to try again: a missing file may have come."""
        changed = self._signature() != {file: self._seen[file] for file in self._files}
        if self._stop.is_set() or not (changed or (noticed and self._failed)):
            return
        try:
            self._swap_in()
            self._failed = False
        except Exception as fault:  # noqa: BLE001 - the status says why; a thread that ended would never see the mended file
            self._failed = True
            policy_reload_failed(self._source, fault)

    def _swap_in(self) -> None:
        self._seen = self._signature()  # before it is read: what changes meanwhile is seen next time
        self._files = {self._source, *self._swap()}
        for file in self._files - set(self._seen):
            self._seen[file] = _state(file)

    def _signature(self) -> dict[Path, tuple[int, ...] | None]:
        return {file: _state(file) for file in self._files}


def _state(file: Path) -> tuple[int, ...] | None:
    """What tells one content of a file from another without reading it; None where there is none."""
    try:
        info = file.stat()
    except OSError:
        return None
    return (info.st_ino, info.st_mtime_ns, info.st_size)
