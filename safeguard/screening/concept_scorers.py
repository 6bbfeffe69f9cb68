"""A policy's concept, made ready to score: which words and texts speak for it, and which shipped family it means."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from safeguard.screening.corpus import shipped_corpus
from safeguard.screening.encoder import Encoder, Vectors
from safeguard.screening.head import UNION, Reference, fit, load
from safeguard.screening.normalize import normalize
from safeguard.screening.proper_names import NameList, best_cosine, parse_name, span_score
from safeguard.screening.scoring import Benign, ScoreInputs, Scorer, Text, example_score
from safeguard.screening.wordlist import WordList, tokens

if TYPE_CHECKING:
    from safeguard.policy import Concept

SECOND = 0.6  # between the two thresholds
CACHE_SIZE = 1024  # compiled concepts kept
_Key = tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class ConceptScorer:
    """``names`` for proper names, ``scorer`` for meaning; a concept of proper names alone has no scorer."""

    family: str  # the shipped family that the concept means, or empty
    names: NameList | None
    name_vectors: Vectors
    scorer: Scorer | None
    unsafe: Vectors  # the policy's own unsafe examples that hold no name, and its safe ones
    safe: Vectors

    def score(self, text: Text, spans: Vectors, unsafe: float, top: Sequence[str]) -> float:
        """0..1. A family's concept is gated by ``unsafe``, the score of anything unsafe; see ``_family_score``."""
        scores = [0.0]
        if self.names is not None:
            scores.append(self.names.match(text.tokens))
            scores.append(span_score(best_cosine(spans, self.name_vectors)))
        if self.scorer is not None:
            scores.append(self._family_score(self.scorer, text, unsafe, top) if self.family else self.scorer.score(text))
        if len(self.unsafe):
            scores.append(example_score(text, self.unsafe, self.safe))
        return max(scores)

    def _family_score(self, scorer: Scorer, text: Text, unsafe: float, top: Sequence[str]) -> float:
        """*Whether* a text is unsafe is told better than *which* way it is: a text found unsafe opens its nearest family,
        and the second nearest as far as activated but not severe; the rest need a score of their own.
        """
        own = scorer.score(text)
        if self.family in top and not scorer.nearer_to_safe(text):
            own = 1.0 if self.family == top[0] else max(own, SECOND)
        return min(unsafe, own)


class Compiler:
    """Turns concepts into scorers; keeps those it has made. Not thread-safe: the screener holds a lock."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._texts = shipped_corpus()
        self._reference = self._load_reference()
        reference = self._reference
        self._benign = Benign(
            vectors=reference.benign,
            to_benign=reference.neighbours().max(axis=1),
            tokens=tuple(tuple(tokens(normalize(text))) for text in self._texts.benign),
            counted=~np.array(self._texts.hard),
        )
        self._all_words = frozenset(word for family in self._texts.families.values() for word in family.words)
        self._nothing = np.empty((0, reference.benign.shape[1]), dtype=np.float32)
        self._kept: OrderedDict[_Key, ConceptScorer] = OrderedDict()
        self._families = {name: self._family_scorer(name) for name in self._texts.families}
        self.union = self._family_scorer(*self._texts.families)

    def text(self, vectors: Vectors, words: tuple[str, ...]) -> Text:
        """What scorers look at, from the vectors [w, width] and the tokens of one text."""
        return Text(vectors, (vectors @ self._benign.vectors.T).max(axis=1), words)

    def top_families(self, text: Text, count: int) -> tuple[str, ...]:
        """The shipped families that the text is nearest to, best first."""
        ranked = sorted(self._families, key=lambda name: -self._families[name].margin(text))
        return tuple(ranked[:count])

    def scorers(self, concepts: Sequence[Concept]) -> list[ConceptScorer]:
        """In the given order. Texts of concepts not seen before are encoded in one batch."""
        keys = [_key(concept) for concept in concepts]
        fresh = {key: concept for key, concept in zip(keys, concepts, strict=True) if key not in self._kept}
        if fresh:
            wanted = dict.fromkeys(text for concept in fresh.values() for text in _texts_of(concept))
            vectors = dict(zip(wanted, self._encoder.encode(list(wanted)), strict=True))
            self._kept.update({key: self._compile(concept, vectors) for key, concept in fresh.items()})
        scorers = [self._kept[key] for key in keys]
        for key in keys:
            self._kept.move_to_end(key)
        while len(self._kept) > max(CACHE_SIZE, len(keys)):
            self._kept.popitem(last=False)
        return scorers

    def _load_reference(self) -> Reference:
        if self._encoder.bundled:
            return load(self._encoder.name, self._texts)
        return fit(self._encoder, self._texts, templates=False)

    def _family_scorer(self, *families: str, unsafe: Vectors | None = None, safe: Vectors | None = None) -> Scorer:
        """Of one family, or of the union of all; with a concept's own texts beside the shipped ones."""
        reference = self._reference
        examples = [reference.examples[name] for name in families]
        evidence = ScoreInputs(
            names=np.concatenate([reference.names[name] for name in families]),
            unsafe=np.concatenate(examples if unsafe is None else [*examples, unsafe]),
            safe=self._nothing if safe is None else safe,
            head=reference.heads[families[0] if len(families) == 1 else UNION],
            words=WordList(word for name in families for word in self._texts.families[name].words),
            phrases=(),
        )
        return Scorer(evidence, self._benign)

    def _compile(self, concept: Concept, vectors: dict[str, Vectors]) -> ConceptScorer:
        def rows(texts: Sequence[str]) -> Vectors:
            return np.stack([vectors[text] for text in texts]) if texts else self._nothing

        parsed = {phrase: parse_name(phrase) for phrase in concept.phrases}
        names = NameList([name for name in parsed.values() if name is not None])
        meant = [phrase for phrase, name in parsed.items() if name is None]
        unsafe, safe = rows(concept.unsafe_examples), rows(concept.safe_examples)
        family = self._family_of(concept)
        scorer = None
        if family:
            scorer = self._family_scorer(family, unsafe=unsafe if len(unsafe) else None, safe=safe)
        elif meant:
            scorer = Scorer(self._own_evidence(meant, rows(meant), unsafe, safe), self._benign)
        nameless = [text for text in concept.unsafe_examples if not names.match(tokens(normalize(text)))]
        return ConceptScorer(
            family=family,
            names=names if names.names else None,
            name_vectors=rows(names.texts),
            scorer=scorer,
            unsafe=rows(nameless),
            safe=safe,
        )

    def _family_of(self, concept: Concept) -> str:
        names = {"-".join(tokens(normalize(text))) for text in (concept.id.replace("-", " ").replace("_", " "),)}
        names |= {normalize(phrase).replace(" ", "-") for phrase in concept.phrases[:1]}
        return next((name for name, family in self._texts.families.items() if family.aliases & names), "")

    def _own_evidence(self, phrases: Sequence[str], names: Vectors, unsafe: Vectors, safe: Vectors) -> ScoreInputs:
        """From the concept's own texts alone. Of phrases of several words, words on a shipped list count singly too."""
        folded = [normalize(phrase) for phrase in phrases]
        single = {phrase for phrase in folded if " " not in phrase}
        telling = {word for phrase in folded for word in tokens(phrase) if word in self._all_words}
        return ScoreInputs(
            names=names,
            unsafe=np.concatenate([names, unsafe]) if len(unsafe) else names,
            safe=safe,
            head=None,
            words=WordList(single | telling),
            phrases=tuple(phrase for phrase in folded if " " in phrase),
        )


def _key(concept: Concept) -> _Key:
    return concept.id, concept.phrases, concept.unsafe_examples, concept.safe_examples


def _texts_of(concept: Concept) -> tuple[str, ...]:
    bare = tuple(name.text for phrase in concept.phrases if (name := parse_name(phrase)) is not None)
    return concept.phrases + bare + concept.unsafe_examples + concept.safe_examples
