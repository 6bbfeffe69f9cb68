"""Fit the heads on the shipped texts and write ``head.safetensors``: ``python -m safeguard.screening.fit_heads``."""

from __future__ import annotations

import argparse
from pathlib import Path

from safeguard.screening.corpus import shipped_corpus
from safeguard.screening.encoder import Encoder
from safeguard.screening.head import FILE, fit, save


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(FILE), help="where to write (default: in place)")
    out: Path = parser.parse_args(arguments).out
    texts = shipped_corpus()
    reference = fit(Encoder(cache_size=20_000), texts)
    save(reference, texts, out)
    print(f"{out}: {len(reference.benign)} benign texts, {len(reference.names)} families, {out.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
