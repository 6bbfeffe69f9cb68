"""Draw the layers of ``safeguard`` from its imports.

``python -m docs.studies.layer_diagram`` writes ``docs/images/layers.svg``.

Every import statement in the package is read, those of functions and of ``TYPE_CHECKING`` blocks too. A package stands above
all that it imports; the number in a box counts its modules, and the line below the name lists what it imports.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

PACKAGE = "safeguard"
WIDTH, BOX, ROW, GAP, MARGIN = 960, 62, 84, 12, 12
STYLE = """
  text { font-family: sans-serif; fill: #1a1a1a; }
  rect { fill: #eef1fb; stroke: #4051b5; }
  .name { font-size: 15px; font-weight: bold; }
  .imports { font-size: 11px; fill: #444; }
  .arrow { stroke: #4051b5; stroke-width: 2; }
  .ground { fill: #ffffff; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f0f0; } rect { fill: #23283b; stroke: #8c9eff; } .imports { fill: #c8c8c8; } .arrow { stroke: #8c9eff; }
    .ground { fill: #14161f; }
  }
"""


def _part(module: str) -> str | None:
    """The package directly below ``safeguard`` in which a module is, or None for another distribution's."""
    names = module.split(".")
    return names[1] if names[0] == PACKAGE and len(names) > 1 else None


def _imports(path: Path, module: str) -> Iterator[str]:
    """Names of modules that one file imports, absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # ``from safeguard import errors`` names a module; ``from safeguard import protect`` only what its __init__ offers.
            yield from (f"{source}.{alias.name}" for alias in node.names) if source == PACKAGE else (source,)


def import_graph(root: Path) -> tuple[dict[str, set[str]], dict[str, int]]:
    """What each part of the package imports of the others, and how many modules it has.

    Args:
        root: The checkout.

    Returns:
        The imported parts by part, and the number of modules by part. The package's own ``__init__`` is no part.
    """
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    counts: dict[str, int] = {}
    for name in names.values():
        part = _part(name)
        if part:
            counts[part] = counts.get(part, 0) + 1
    graph: dict[str, set[str]] = {part: set() for part in counts}
    for path, name in names.items():
        part = _part(name)
        if part:
            graph[part] |= {target for item in _imports(path, name) if (target := _part(item)) in counts and target != part}
    return graph, counts


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """The parts in rows, the lowest first: each stands one row above the highest that it imports.

    Raises:
        ValueError: If parts import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [part for part in graph if part not in level and graph[part] <= level.keys()]
        if not ready:
            raise ValueError(f"these packages import each other in a circle: {', '.join(sorted(graph.keys() - level.keys()))}")
        level |= {part: 1 + max((level[target] for target in graph[part]), default=-1) for part in ready}
    return [sorted(part for part in graph if level[part] == row) for row in range(1 + max(level.values(), default=-1))]


def _box(part: str, x: float, y: float, width: float, imports: set[str], count: int) -> list[str]:
    modules = f"{count} module{'s' if count > 1 else ''}"
    below = ("imports " + ", ".join(sorted(imports))) if imports else "imports no other part"
    room = int(width / 5.6)
    first = below if len(below) <= room else below[: below.rfind(",", 0, room) + 1]
    lines = [first, below[len(first) :].strip()]
    centre = x + width / 2
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="6"/>',
        f'<text class="name" text-anchor="middle" x="{centre:.1f}" y="{y + 20:.1f}">{escape(part)} ({modules})</text>',
        *(
            f'<text class="imports" text-anchor="middle" x="{centre:.1f}" y="{y + 37 + 15 * number:.1f}">{escape(line)}</text>'
            for number, line in enumerate(lines)
            if line
        ),
    ]


def draw(graph: dict[str, set[str]], counts: dict[str, int]) -> str:
    """The picture as SVG text. The same graph gives the same bytes; in a dark reader it has dark boxes."""
    rows = list(reversed(levels(graph)))
    height = MARGIN * 2 + ROW * len(rows) - (ROW - BOX)
    shapes: list[str] = []
    for number, row in enumerate(rows):
        y = MARGIN + number * ROW
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        for place, part in enumerate(row):
            shapes += _box(part, MARGIN + place * (width + GAP), y, width, graph[part], counts[part])
        if number + 1 < len(rows):
            top = y + BOX + 2
            shapes.append(f'<path class="arrow" fill="none" d="M{WIDTH / 2:.0f} {top} v14 m-5 -5 l5 5 l5 -5"/>')
    ground = f'<rect class="ground" width="{WIDTH}" height="{height}"/>'  # readable whatever stands behind the picture
    body = "\n".join([ground, *shapes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-label="The layers of safeguard">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the layers of safeguard from its imports.")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: here)")
    root: Path = parser.parse_args().root
    (root / "docs" / "images" / "layers.svg").write_text(draw(*import_graph(root)), encoding="utf-8")


if __name__ == "__main__":
    main()
