"""What stands after a sequence of records: later judgements replace earlier ones, withdrawn ones count no more."""

from __future__ import annotations

from collections.abc import Iterator

from safeguard.feedback.judgements import Entry, Item, Judgement, Key, Withdrawal


class JudgementReplay:
    """The state of a store, built up record by record in the order of the file."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}  # by concept and image
        self.images: set[str] = set()
        self.said: dict[str, Judgement] = {}  # by id, withdrawn ones too
        self.withdrawn: set[str] = set()
        self._said_of: dict[Key, list[str]] = {}  # what is not withdrawn, the latest last

    def take(self, entry: Entry) -> None:
        """One record more. Raises ValueError, and changes nothing, where it does not follow on what came before."""
        self.check(entry)
        if isinstance(entry, Item):
            self.items.setdefault((entry.concept, entry.image), entry)
            self.images.add(entry.image)
        elif isinstance(entry, Judgement):
            self.said[entry.id] = entry
            self._said_of.setdefault(entry.key, []).append(entry.id)
        else:
            self.withdrawn.add(entry.judgement)
            self._said_of[self.said[entry.judgement].key].remove(entry.judgement)

    def check(self, entry: Entry) -> None:
        """Raises ValueError where a record does not follow on what came before."""
        if isinstance(entry, Judgement):
            strange = [image for image in entry.images if (entry.concept, image) not in self.items]
            if strange:
                raise ValueError(f"nobody is asked about {entry.concept} in picture {strange[0][:12]}")
            if entry.id in self.said:
                raise ValueError(f"there is a judgement {entry.id} already")
        elif isinstance(entry, Withdrawal):
            judgement = self.said.get(entry.judgement)
            if judgement is None or judgement.who != entry.who:
                raise ValueError(f"{entry.who} gave no judgement {entry.judgement}")
            if judgement.id in self.withdrawn:
                raise ValueError(f"judgement {entry.judgement} was taken back before")

    def standing(self) -> Iterator[Judgement]:
        """The judgement that holds for each question of each person: the last that was not withdrawn."""
        return (self.said[ids[-1]] for ids in self._said_of.values() if ids)

    def kept(self) -> Iterator[Judgement]:
        """Every judgement that was not withdrawn, replaced ones too, in their order."""
        return (judgement for judgement in self.said.values() if judgement.id not in self.withdrawn)
