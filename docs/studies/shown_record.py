"""Write the decision record that README shows: ``python -m docs.studies.shown_record``.

The call of README's example is made on the demo pipeline, under README's policy, with a log of its own. The record of its
image takes the place of the one in README, as it was written to the log; only line breaks are put in.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

SHOWN = re.compile(r"(<!-- record -->\n```json\n)(?:.*?)(```)", re.DOTALL)
POLICY = re.compile(r'```yaml title="policy.yaml"\n(.*?)```', re.DOTALL)
WIDTH = 128
ORDER = "schema decision_id time seq labels policy tenant request_id trace_id subject screen evidence applied result status"
LAST = "model output metrics redacted masked prev hash"


def make_record(policy: str) -> dict[str, Any]:
    """The record of one call of the demo pipeline, the fourth under its guard: the first ones load the screener.

    Args:
        policy: The text of a policy file.

    Returns:
        The record, as the log holds it.
    """
    import torch
    from safeguard_demo import calibration, load_pipeline

    import safeguard
    from safeguard.audit import AuditLog

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(policy, encoding="utf-8")
        log = AuditLog(Path(folder) / "audit", service="storefront", instance="web-1")
        pipe = load_pipeline("unet")
        with safeguard.protect(pipe, file, audit=log, calibration=calibration("unet")) as guard:
            for _ in range(4):
                with guard.request(request_id="order-7", tenant="shop"):
                    seed = torch.Generator().manual_seed(7)
                    pipe("a red car on a battlefield", num_inference_steps=10, guidance_scale=4.0, generator=seed)
        log.close()
        (file,) = (Path(folder) / "audit").glob("*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    record = [line for line in lines if "decision_id" in line][-1]
    places = f"{ORDER} {LAST}".split()
    return {key: record[key] for key in sorted(record, key=places.index)}


def layout(value: Any, indent: int = 0) -> str:
    """JSON with line breaks only where a line would be wider than ``WIDTH``."""
    short = json.dumps(value)
    if (indent and len(short) + indent <= WIDTH - 16) or not isinstance(value, dict | list) or not value:
        return short
    pad = " " * (indent + 2)
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + layout(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
    items = [f"{pad}{json.dumps(key)}: {layout(item, indent + 2)}" for key, item in value.items()]
    return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the decision record that README shows.")
    parser.add_argument("--page", type=Path, default=Path("README.md"), help="the page that shows it (default: README.md)")
    page: Path = parser.parse_args().page
    text = page.read_text(encoding="utf-8")
    policy = POLICY.search(text)
    if policy is None or SHOWN.search(text) is None:
        raise SystemExit(f"{page}: no block for policy.yaml, or no block below <!-- record -->")
    record = layout(make_record(policy[1]))
    page.write_text(SHOWN.sub(lambda found: f"{found[1]}{record}\n{found[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
