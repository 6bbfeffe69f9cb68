"""How far people agree: a reward model is no better than the labels that it learns from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safeguard.feedback.judgements import Judgement


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the raters ``who``: over ``pictures`` that they all answered with yes or no, the ``share`` answered alike, and
    ``kappa``, agreement beyond chance: 1 is full, 0 is chance. None where everybody gave one and the same answer throughout.
    """

    who: tuple[str, ...]
    pictures: int
    share: float
    kappa: float | None


def agreement(labels: Mapping[str, Mapping[str, str]]) -> list[Agreement]:
    """Of `FeedbackStore.labels`: Cohen's kappa (1960) of each two raters who answered the same pictures, and where there are
    more, last Fleiss' kappa (1971) of all. Empty with one rater; ``unsure`` is no answer here.
    """
    answers = {
        image: {who: answer for who, answer in given_answers.items() if answer != "unsure"}
        for image, given_answers in labels.items()
    }
    raters = sorted({who for given_answers in answers.values() for who in given_answers})
    groups: list[tuple[str, ...]] = list(itertools.combinations(raters, 2))
    if len(raters) > 2:
        groups.append(tuple(raters))
    return list(_found(answers, groups))


def _found(answers: Mapping[str, Mapping[str, str]], groups: Sequence[tuple[str, ...]]) -> Iterator[Agreement]:
    for who in groups:
        rows = [
            [given_answers[name] == "yes" for name in who]
            for given_answers in answers.values()
            if all(name in given_answers for name in who)
        ]
        if rows:
            alike = sum(len(set(row)) == 1 for row in rows) / len(rows)
            yield Agreement(who, len(rows), alike, _kappa(rows))


def _kappa(rows: Sequence[Sequence[bool]]) -> float | None:
    if len({answer for row in rows for answer in row}) == 1:
        return None
    if len(rows[0]) == 2:
        from sklearn.metrics import cohen_kappa_score

        return float(cohen_kappa_score(*zip(*rows, strict=True)))
    return _fleiss(rows)


def _fleiss(rows: Sequence[Sequence[bool]]) -> float:
    """Fleiss' kappa of n pictures, each answered by the same m raters."""
    m = len(rows[0])
    yes = [sum(row) for row in rows]
    observed = sum(share_of_yes * (share_of_yes - 1) + (m - share_of_yes) * (m - share_of_yes - 1) for share_of_yes in yes) / (
        len(rows) * m * (m - 1)
    )
    share = sum(yes) / (len(rows) * m)
    chance = share**2 + (1 - share) ** 2
    return (observed - chance) / (1 - chance)


def pairs_of(rankings: Sequence[Judgement]) -> list[tuple[str, str]]:
    """Every (less, more) that the rankings say, once for each time that it is said."""
    return [pair for ranking in rankings for pair in itertools.combinations(ranking.images, 2)]


def pair_agreement(rankings: Sequence[Judgement]) -> tuple[int, float] | None:
    """Over two pictures that different people put in an order: how many such comparisons, and the share put alike. None
    where there are none.
    """
    orders: dict[frozenset[str], list[tuple[str, str]]] = {}
    for first in rankings:
        for less, more in itertools.combinations(first.images, 2):
            orders.setdefault(frozenset((less, more)), []).append((first.who, more))
    alike = [
        first[1] == second[1]
        for order in orders.values()
        for first, second in itertools.combinations(order, 2)
        if first[0] != second[0]
    ]
    return (len(alike), sum(alike) / len(alike)) if alike else None
