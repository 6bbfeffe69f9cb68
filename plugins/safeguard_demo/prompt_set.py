"""The prompt set ``demo``: captions of the demo world, as `safeguard.evaluation` measures on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from safeguard.evaluation.prompt_sets import EVERY, Cell, PromptCase, cells, seed_of
from safeguard_demo import as_written, captions, language
from safeguard_demo.captions import Prompt
from safeguard_demo.judge import ATTRIBUTES
from safeguard_demo.world import CONCEPTS


class DemoPrompts:
    """Every cell of the demo's concepts, with what each prompt asks for: the subject, colour and scene, or of a short one
    nothing that it does not say.
    """

    concepts: tuple[str, ...] = CONCEPTS
    attributes: tuple[str, ...] = tuple(ATTRIBUTES)

    def cells(self, concepts: Sequence[str] = CONCEPTS) -> tuple[Cell, ...]:
        """Every cell of these concepts, and those of no concept."""
        return cells(concepts, EVERY)

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """``count`` pictures of a cell, of which short prompts and examples may come again with another seed. Raises ValueError
        where the split holds fewer prompts, or for a colour in a cell that has none.
        """
        if cell.kind in as_written.KINDS:
            return _written(as_written.WORLD, cell, split, count, seed)
        return _cases(captions.prompts(split, cell.kind, cell.concept, count, seed=seed, colour=cell.colour), cell, seed)


class LanguagePrompts(DemoPrompts):
    """The same cells in ordinary words. The words of ``dev`` and ``test`` were kept from the pipeline ``language``."""

    def cases(self, cell: Cell, split: str, count: int, seed: int = 0) -> list[PromptCase]:
        """``count`` pictures of a cell. Raises ValueError where the split holds fewer prompts, or for a colour."""
        if cell.colour is not None:
            raise ValueError("the prompt set 'language' has no cells of one colour")
        if cell.kind in as_written.KINDS:
            return _written(as_written.LANGUAGE, cell, split, count, seed)
        return _cases(language.prompts(split, cell.kind, cell.concept, count, seed=seed), cell, seed)


def _written(words: as_written.Wording, cell: Cell, split: str, count: int, seed: int) -> list[PromptCase]:
    if cell.colour is not None:
        raise ValueError(f"there are no cells {cell.kind!r} of one colour")
    return _cases(as_written.prompts(words, split, cell.kind, cell.concept, count, seed=seed), cell, seed)


def _cases(prompts: Sequence[Prompt], cell: Cell, seed: int) -> list[PromptCase]:
    times: Counter[str] = Counter()
    cases = []
    for prompt in prompts:
        scene, text = prompt.scene, prompt.text
        asked = {"subject": scene.subject, "colour": scene.colour, "scene": scene.place}
        if cell.kind in ("short", "policy"):
            asked = {"subject": scene.subject} if prompt.says_subject else {}
        noise = seed_of(text, seed) if not times[text] else seed_of(f"{text} ({times[text]})", seed)
        times[text] += 1
        cases.append(PromptCase(text, noise, asked, prompt.named, scene.concepts, prompt.negative))
    return cases
