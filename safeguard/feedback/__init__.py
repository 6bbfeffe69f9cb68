"""What people say of pictures: a store of answers and rankings, with who gave them and when, and a page to give them."""

from safeguard.feedback.agreement import Agreement, agreement
from safeguard.feedback.judgements import ANSWERS, SCHEMA, Item, Judgement, PictureModel, Withdrawal
from safeguard.feedback.store import FeedbackStore

__all__ = ["ANSWERS", "SCHEMA", "Agreement", "FeedbackStore", "Item", "Judgement", "PictureModel", "Withdrawal", "agreement"]
