"""Tokenizers and text encoders, all made from configurations.

Each tokenizer knows a few whole words and spells every other text letter by letter (or byte by byte).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from safeguard.testing.tiny_pipelines import TOKENS, text_encoder
from safeguard.testing.tiny_pipelines import tokenizer as clip_words
from tests.support.tiny_pipelines.whole import Make

__all__ = ["TOKENS", "clip_words"]

WIDTH: Final = 32
LONG: Final = 4096
WORDS: Final = [
    "a",
    "an",
    "the",
    "in",
    "on",
    "of",
    "at",
    "and",
    "with",
    "by",
    "red",
    "green",
    "blue",
    "dark",
    "boat",
    "tree",
    "snow",
    "blood",
    "knife",
    "house",
    "dog",
    "cat",
    "man",
    "woman",
    "photo",
    "picture",
    "image",
    "Describe",
    "describe",
    "detailing",
    "color",
    "shape",
    "size",
    "texture",
    "quantity",
    "text",
    "spatial",
    "relationships",
    "objects",
    "background",
    "system",
    "user",
    "assistant",
    "You",
    "are",
    "designed",
    "to",
    "generate",
    "superior",
    "images",
    "based",
    "textual",
    "prompts",
    "prompt",
    "video",
    "camera",
    "movement",
    "content",
]
MARKS: Final = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<think>",
    "</think>",
)
CHAT: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for piece in message['content'] %}{% if piece['type'] == 'text' %}{{ piece['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def built(kind: str, config: str, **options: Any) -> Any:
    """A model of transformers with random weights."""
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()


def clip(kind: str = "CLIPTextModel", width: int = WIDTH, **changes: Any) -> Make:
    return lambda: text_encoder(kind, width, **changes)


@functools.cache
def t5_words() -> Any:
    """Pieces with scores: a known word is one piece, any other is spelled."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters] + [("▁" + word, -4.0) for word in WORDS]
    if transformers.T5Tokenizer is transformers.T5TokenizerFast:
        return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    spelling = Tokenizer(models.Unigram(pieces, unk_id=2))  # what transformers 5 makes of them; 4 has no such argument
    spelling.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    spelling.decoder = decoders.Metaspace(prepend_scheme="always")
    spelling.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.T5TokenizerFast(tokenizer_object=spelling, extra_ids=0, model_max_length=512)


def t5(width: int = WIDTH, kind: str = "T5", **changes: Any) -> Make:
    def make() -> Any:
        options: dict[str, Any] = {
            "vocab_size": len(t5_words()),
            "d_model": width,
            "d_kv": 8,
            "d_ff": 2 * width,
            "num_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
        }
        return built(kind + "EncoderModel", kind + "Config", **{**options, **changes})

    return make


def umt5() -> Make:
    return t5(kind="UMT5")


def _merged(alphabet: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The pieces and the joins that make each known word one piece, with a space before it and without."""
    pieces, joins = list(alphabet), []
    for word in [*("Ġ" + word for word in WORDS), *WORDS]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                joins.append((word[: end - 1], word[end - 1]))
    return pieces, joins


def byte_pairs(starts: str | None = None) -> Tokenizer:
    """Byte pairs, as the language models of today spell; the marks of chats are tokens of their own."""
    pieces, joins = _merged(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate([*MARKS, *pieces])}, joins))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{starts} $A", pair=f"{starts} $A {starts} $B", special_tokens=[(starts, MARKS.index(starts))]
        )
    return tokenizer


@functools.cache
def chat_words(side: str = "right", starts: str | None = None) -> Any:
    """The tokenizer of a language model, with a template for chats."""
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(
        tokenizer_object=byte_pairs(starts),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=side,
        model_max_length=LONG,
        chat_template=CHAT,
    )


def words(side: str = "right", starts: str | None = None) -> Make:
    return lambda: chat_words(side, starts)


def language(**changes: Any) -> dict[str, Any]:
    """What the configurations of language models have in common."""
    options: dict[str, Any] = {
        "vocab_size": len(chat_words()),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": LONG,
        "pad_token_id": MARKS.index("<pad>"),
        "bos_token_id": MARKS.index("<s>"),
        "eos_token_id": MARKS.index("</s>"),
    }
    return {**options, **changes}


def decoder(kind: str, config: str, **changes: Any) -> Make:
    """A language model that is read for its hidden states."""
    return lambda: built(kind, config, **language(**changes))


def vision(kind: str = "CLIPVisionModelWithProjection", width: int = WIDTH) -> Make:
    """An encoder of pictures, for the pipelines that read one beside the text."""
    options = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width, "image_size": 32, "patch_size": 8}
    return lambda: built(kind, "CLIPVisionConfig", **options, num_hidden_layers=2, num_attention_heads=4)


EYES: Final[dict[str, Any]] = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": WIDTH}
SIGHTS: Final[dict[str, Any]] = {
    "image_token_id": MARKS.index("<|image_pad|>"),
    "video_token_id": MARKS.index("<|video_pad|>"),
    "vision_start_token_id": MARKS.index("<|vision_start|>"),
    "vision_end_token_id": MARKS.index("<|vision_end|>"),
}


def qwen_vl() -> Make:
    """A language model that could read pictures too."""

    def make() -> Any:
        text = language(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
        eyes = {**EYES, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [0]}
        return built("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", text_config=text, vision_config=eyes, **SIGHTS)

    return make


def qwen3_vl() -> Make:
    def make() -> Any:
        text = language(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]})
        eyes = {**EYES, "deepstack_visual_indexes": [0]}
        return built("Qwen3VLModel", "Qwen3VLConfig", text_config=text, vision_config=eyes, **SIGHTS)

    return make


def mistral_vl() -> Make:
    def make() -> Any:
        eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32}
        parts = {"text_config": {**language(), "model_type": "mistral"}, "vision_config": {**eyes, "model_type": "pixtral"}}
        return built("Mistral3Model", "Mistral3Config", **parts)

    return make


def t5_gemma() -> Make:
    def make() -> Any:
        size = language()["vocab_size"]
        sides = {"encoder": language(), "decoder": language()}
        return built("T5GemmaEncoderModel", "T5GemmaConfig", **sides, vocab_size=size, is_encoder_decoder=False)

    return make
