"""What all tests share: the size of a run, and the demo pipeline with its judge and few steps: enough to see what is done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safeguard.evaluation.harness import Harness

settings.register_profile("untimed", deadline=None)  # no test asserts a time: a busy machine is no fault
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-products", action="store_true", help="every eraser on every family, every denoiser class: not only the sample"
    )


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Levels and handlers that a test, or the page that it runs, gives to the package's loggers and to the root end with it."""
    named = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "safeguard"]
    loggers = [logging.root, *(logging.getLogger(name) for name in named)]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)


@pytest.fixture(scope="session")
def pipe() -> Any:
    from safeguard_demo import load_pipeline

    return load_pipeline("unet")


@pytest.fixture(scope="session")
def studio(pipe: Any) -> Harness:
    from safeguard_demo import Judge
    from safeguard_demo.prompt_set import DemoPrompts

    from safeguard.evaluation.harness import Harness

    return Harness(pipe, Judge(), steps=3, guidance=4.0, prompts=DemoPrompts())
