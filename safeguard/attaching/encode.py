"""Encoding texts as the pipeline itself does, and catching what it would hand to its denoiser."""

from __future__ import annotations

import copy
import inspect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.attaching.rows import stamp_of
from safeguard.attaching.sites import inner
from safeguard.erasing import EncodedText
from safeguard.errors import CapabilityError

BATCH: Final = 32  # texts encoded at a time
KEPT: Final = 64  # untrimmed texts: some are users' own, and none is kept longer than it is useful


class TextEncoding:
    """A pipeline's own way from texts to the states that its denoiser reads. Threads take turns."""

    def __init__(self, pipe: Any, base: type) -> None:
        self._pipe = pipe
        self._base = base
        self._trim: dict[str, EncodedText] = {}
        self._whole: OrderedDict[str, tuple[Tensor, Tensor | None]] = OrderedDict()
        self._stamp: tuple[Any, ...] | None = ()
        self.lock = threading.RLock()  # a tokenizer keeps padding and truncation as state: threads take turns
        if not hasattr(base, "encode_prompt"):
            raise CapabilityError(
                f"{base.__name__} does not encode text (no encode_prompt), so there is no text to erase by",
                pipeline=base.__name__,
                missing="encode_prompt",
            )

    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Untrimmed states [n, L, D] as the denoiser gets them, and the pooled texts [n, P] where there are any."""
        with self.lock:
            self._forget_if_changed()
            wanted = {text: self._whole[text] for text in texts if text in self._whole}
            new = [text for text in dict.fromkeys(texts) if text not in wanted]
            wanted.update(self._run(new))
            self._whole.update(wanted)
            for text in wanted:
                self._whole.move_to_end(text)
            while len(self._whole) > KEPT:
                self._whole.popitem(last=False)
        rows = [wanted[text] for text in texts]
        pooled = [pool for _, pool in rows if pool is not None]
        return torch.stack([states for states, _ in rows]), torch.stack(pooled) if pooled else None

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """States trimmed to real tokens. Raises CapabilityError for a text longer than the encoder reads."""
        with self.lock:
            self._forget_if_changed()
            new = [text for text in dict.fromkeys(texts) if text not in self._trim]
            self._trim.update({text: self._trimmed(text, states) for text, (states, _) in self._run(new).items()})
            return [self._trim[text] for text in texts]

    def _run(self, texts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        made: dict[str, tuple[Tensor, Tensor | None]] = {}
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            states, pooled = self._encoded(batch)
            made.update(zip(batch, zip(states, [None] * len(batch) if pooled is None else pooled, strict=True), strict=True))
        return made

    def _encoded(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        parameters = inspect.signature(self._base.encode_prompt).parameters  # type: ignore[attr-defined]
        wanted = {
            "prompt": texts,
            "device": self._pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        with torch.inference_mode(False), torch.no_grad():
            made = self._base.encode_prompt(self._pipe, **{k: v for k, v in wanted.items() if k in parameters})  # type: ignore[attr-defined]
        parts = [part for part in (made if isinstance(made, tuple) else (made,)) if isinstance(part, Tensor)]
        states = parts[0] if parts else None
        if states is None or states.dim() != 3 or len(states) != len(texts):
            raise CapabilityError(
                f"{self._base.__name__}.encode_prompt does not give one row of token states a text",
                pipeline=self._base.__name__,
                missing="token states",
            )
        pooled = next((part for part in parts[1:] if part.dim() == 2 and len(part) == len(texts)), None)
        return states, pooled

    def _trimmed(self, text: str, states: Tensor) -> EncodedText:
        tokenizer = getattr(self._pipe, "tokenizer", None) or getattr(self._pipe, "tokenizer_2", None)
        if tokenizer is None:
            return EncodedText(states, slice(0, len(states)))
        empty = list(tokenizer("").input_ids)
        ids = list(tokenizer(text).input_ids)
        if len(ids) > len(states):
            raise CapabilityError(
                f"a phrase of the policy takes {len(ids)} tokens, and the text encoder reads {len(states)}: shorten it",
                pipeline=self._base.__name__,
                missing="room for a phrase",
            )
        after = 1 if empty and empty[-1] == tokenizer.eos_token_id else 0
        before = max(0, len(empty) - after)
        return EncodedText(states[: max(1, len(ids))].clone(), slice(before, len(ids) - after))

    def _forget_if_changed(self) -> None:
        """Drop what was kept when an encoder's weights may have changed (LoRA, textual inversion, another device)."""
        encoders = [
            part for name, part in self._pipe.components.items() if name.startswith("text_encoder") and part is not None
        ]
        stamps = [(id(encoder), *map(stamp_of, encoder.parameters())) for encoder in encoders]
        stamp = None if any(None in one for one in stamps) else tuple(stamps)
        if stamp is None or stamp != self._stamp:
            self._trim.clear()
            self._whole.clear()
            self._stamp = stamp


class _Caught(BaseException):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = (args, kwargs)


class _Catcher:
    """Stands in for a denoiser in a copy of the pipeline: passes for it, by ``isinstance`` too; to call it ends the run."""

    def __init__(self, denoiser: Any) -> None:
        self.__dict__["_denoiser"] = denoiser

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(inner(self.__dict__["_denoiser"]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Caught(args, kwargs)


def catch_call(pipe: Any, base: type, name: str, texts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which ``pipe`` would call its denoiser ``name`` for ``texts``, without guidance, in its first step.

    Runs the pipeline's own ``__call__`` on a shallow copy with a scheduler of its own, so that a request under way is not
    disturbed. Raises CapabilityError where the pipeline needs more than a prompt and an image.
    """
    twin = copy.copy(pipe)
    object.__setattr__(twin, "__class__", base)
    twin.__dict__[name] = _Catcher(pipe.__dict__[name])
    if getattr(pipe, "scheduler", None) is not None:
        twin.__dict__["scheduler"] = copy.deepcopy(pipe.scheduler)
    twin.__dict__["_progress_bar_config"] = {"disable": True}
    parameters = inspect.signature(base.__call__).parameters
    wanted: dict[str, Any] = {"prompt": texts, "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    for image in ("image", "mask_image", "control_image"):
        if image in parameters:
            wanted[image] = _blank(pipe, len(texts))
    try:
        base.__call__(twin, **{key: value for key, value in wanted.items() if key in parameters})
    except _Caught as caught:
        return caught.call
    except Exception as fault:
        raise CapabilityError(
            f"{base.__name__} could not be run on a prompt alone, so its protection cannot be tested "
            f"({type(fault).__name__}: {fault})",
            pipeline=base.__name__,
            missing="a self-test",
        ) from fault
    raise CapabilityError(f"{base.__name__} never called its {name}", pipeline=base.__name__, missing=name)


def _blank(pipe: Any, count: int) -> list[Any]:
    from PIL import Image

    size = pipe.unet.config.sample_size * getattr(pipe, "vae_scale_factor", 8) if hasattr(pipe, "unet") else 512
    return [Image.new("RGB", (size, size), (128, 128, 128))] * count
