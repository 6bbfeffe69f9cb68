"""What a change costs: ``python -m tests.bench.versions BEFORE [AFTER] [--n 12] [--out FILE]``.

Two checkouts of the project are timed in one run, each in a process of its own and call by call in turn, so that what the
machine does meanwhile meets both alike. ``AFTER`` is this checkout unless another is named. A ratio is the time after over
the time before: the median over the pairs, with the 95 % interval of order statistics. Both run with the packages of this
environment; only the project's own code comes from the checkouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from safeguard.evaluation.statistics import Figure, median

ROOT: Final = Path(__file__).resolve().parents[2]
SCENES: Final = ("unprotected", "one concept", "5 concepts", "20 concepts", "swap of 100 concepts")


class Version:
    """A checkout whose calls are timed in a process of its own."""

    def __init__(self, checkout: Path, kind: str) -> None:
        path = os.pathsep.join(map(str, (checkout, checkout / "plugins")))
        worker = [sys.executable, str(Path(__file__).with_name("version_worker.py")), str(checkout), kind]
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(worker, stdin=-1, stdout=-1, text=True, bufsize=1, env=environment, cwd=checkout)

    def seconds(self, scene: str) -> float:
        """The time of one call. Raises SystemExit where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(scene, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a version's process has ended; what it printed stands above")
        return float(answer)

    def end(self) -> None:
        self._process.communicate()


def compare(before: Path, after: Path, kinds: Sequence[str], count: int) -> dict[str, Figure]:
    """The ratio of each scene on each pipeline."""
    ratios: dict[str, Figure] = {}
    for kind in kinds:
        versions = [Version(checkout, kind) for checkout in (before, after)]
        for scene in SCENES:
            for version in versions:
                version.seconds(scene)
            pairs = []
            for place in range(count):
                order = (0, 1) if place % 2 else (1, 0)
                times = {turn: versions[turn].seconds(scene) for turn in order}
                pairs.append(times[1] / times[0])
            ratios[f"{kind}: {scene}"] = median(pairs)
        for version in versions:
            version.end()
    return ratios


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the project")
    parser.add_argument("after", type=Path, nargs="?", default=ROOT, help="another (default: this one)")
    parser.add_argument("--pipelines", default="unet,mmdit", help="demo pipelines (default: both)")
    parser.add_argument("--n", type=int, default=12, help="pairs of calls a scene (default 12)")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args(arguments)
    ratios = compare(options.before.resolve(), options.after.resolve(), options.pipelines.split(","), options.n)
    table = Table("scene", "after / before", "95 % interval", box=box.SIMPLE, title="time of a call, after against before")
    for scene, figure in ratios.items():
        table.add_row(scene, f"{figure.value:.3f} x", f"{figure.low:.3f} to {figure.high:.3f}")
    Console().print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({scene: asdict(figure) for scene, figure in ratios.items()}, indent=2) + "\n", "utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
