"""``hush``: where a concept would win the attention of the picture, that attention answers less.

O <- (1 - s m) O at every text site, with m the share that the concept's words would have in one softmax with all keys that an
image token meets, head by head. No good method (all that stands in such a place fades), but a whole one.
"""

from safeguard.sdk import ConceptAttention, Seam, SiteEffect, TextSiteEdit


class Hushed(TextSiteEdit):
    def __init__(self, tokens):
        self.concepts = tokens.concepts  # the columns of call.strengths
        self.tokens = tokens

    def select(self, columns):
        """The same for some of the concepts: those that are active nowhere cost nothing."""
        return Hushed(self.tokens.select(columns))

    def __call__(self, call):
        mass = self.tokens.read(call).mass(call.log_mass)  # [rows, heads, image tokens, concepts]
        share = (call.strengths[:, None, None, :] * mass).sum(-1, keepdim=True).clamp(max=1)
        return SiteEffect(-call.merge(share * call.heads_of_output), mass)  # what to add, and the evidence for the record


class Hush:
    api = (1, 0)  # the version of safeguard.sdk that it was written for
    name, version = "hush", "1.0"
    seams = frozenset({Seam.TEXT_SITE})
    strengths = {"weak": 0.5, "medium": 1.0, "strong": 2.0, "max": 4.0}  # the policy's words on this method's scale
    params = {}  # what a policy may give in a concept's params, with defaults

    def edits(self, concepts, params, pipeline):
        """Called once for a policy: a pure function of the concepts, their parameters and the pipeline."""
        return [Hushed(ConceptAttention.of(concepts, pipeline))]
