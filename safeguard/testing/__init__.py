"""For the authors of erasers, and for tests of programs that use safeguard: check an eraser, collect decisions, tiny pipelines.

Nothing here needs a network, a test framework or the demo.
"""

from safeguard.testing.captured_decisions import capture_decisions
from safeguard.testing.contract_report import CheckResult, ContractError, ContractReport
from safeguard.testing.eraser_contract import check_eraser
from safeguard.testing.tiny_pipelines import tiny_pipeline
from safeguard.testing.word_screener import WordScreener

__all__ = [
    "CheckResult",
    "ContractError",
    "ContractReport",
    "WordScreener",
    "capture_decisions",
    "check_eraser",
    "tiny_pipeline",
]
