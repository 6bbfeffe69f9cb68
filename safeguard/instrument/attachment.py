"""One pipeline with hooks at its seams: put in, checked before every request, put back where modules were replaced, removed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from safeguard.errors import CapabilityError
from safeguard.instrument.apply import module_edits, probing
from safeguard.instrument.call_values import inner
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite
from safeguard.instrument.hooks import denoiser_hooks, sdpa
from safeguard.instrument.live_pipeline import LivePipeline
from safeguard.instrument.request_hooks import RequestHooks
from safeguard.plan.calibration import Calibration
from safeguard.plan.compile import Plan
from safeguard.sdk.seams import Seam

OFFERED: Final = frozenset(Seam)


class Attachment(LivePipeline):
    """The seams of one live pipeline, and the hooks that serve them. ``hooks`` is what the hooks call.

    Args:
        pipe: The pipeline. It is not kept alive.
        example: What a call of one prompt needs besides the prompt, for the trials by which the seams are found.

    Raises:
        CapabilityError: Where the pipeline has no denoiser that reads text, or text reaches the image in a way that no eraser
            can get at.
    """

    def __init__(self, pipe: Any, example: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipe, example)
        self.hooks = RequestHooks(self)
        self._handles, self._module_handles = denoiser_hooks.Handles(), module_edits.ModuleHooks(self, self.hooks)
        self._hooking = threading.Lock()
        self._fit = probing.CalibrationCheck()

    @property
    def number(self) -> int:
        """By which requests and compiled graphs name it."""
        return self.hooks.number

    def require(self, calibration: Calibration) -> None:
        """Raises CapabilityError for a calibration that does not fit, or does no more."""
        self._fit.require(calibration, self.name, self.watched_sites)

    def known_texts(self, texts: Sequence[str | None], against: Sequence[str | None]) -> tuple[list[Any], list[Any]]:
        """What a request's texts will be in the denoiser's arguments, for a pipeline that does not say when it encodes."""
        if self.roles.positive:
            return [], []
        return [self.encoding.states(texts)], [self.encoding.states(against)]

    def install(self) -> None:
        """Put the hooks in. Whatever torch compiled before is compiled anew, since it would run without them."""
        denoiser_hooks.forget_graphs()
        for name, part in self.parts.items():
            denoiser_hooks.hook_denoiser(self._handles, part.module, name, part.text, self.hooks)
        for site in self.every_site:
            if isinstance(site, CrossAttentionSite):
                denoiser_hooks.hook_site(self._handles, site, self.hooks)
        sdpa.tap(self._handles, [site for site in self.every_site if isinstance(site, JointAttentionSite)], self.number)

    def remove(self) -> None:
        """Take the hooks off, and let graphs be compiled anew without them."""
        with self._hooking:
            self._handles.remove()
            self._module_handles.remove()
            sdpa.close_tap(self.number)
            denoiser_hooks.forget_graphs()

    def serve(self, plan: Plan) -> None:
        """Hook the modules that the plan's edits of linear layers and features name."""
        with self._hooking:
            self._module_handles.serve(plan)

    def ensure(self, pipe: Any) -> None:
        """Check before a request that every hook is in force; put them back where modules were replaced.

        ``pipe`` is the pipeline that is called: the one that was protected, or a copy of it. Raises CapabilityError if one of
        its denoisers is neither the one that was tested nor a copy that carries its hooks.
        """
        denoisers = self.denoisers
        for name in self.parts:
            live, denoiser = inner(getattr(pipe, name, None)), denoisers.get(name)
            sites = [site for site in self.every_site if site.owner == name]
            same = denoiser is not None and isinstance(live, type(denoiser))
            if not same or (live is not denoiser and not denoiser_hooks.carries(live, sites, self.number)):
                raise CapabilityError(
                    f"component {name!r} was replaced after protect(); release the guard and protect the pipeline again",
                    pipeline=self.name,
                    missing=name,
                )
        if not self._in_force():
            with self._hooking:
                if not self._in_force():  # unless another request has mended them meanwhile
                    self._handles.remove()
                    self._refresh()
                    self.install()

    def _in_force(self) -> bool:
        joint = [site for site in self.every_site if isinstance(site, JointAttentionSite)]
        if joint and not sdpa.is_open():
            return False
        there = all(self.parts[site.owner].module.get_submodule(site.name) is site.module for site in joint)
        separate = all(site.hooked for site in self.every_site if isinstance(site, CrossAttentionSite))
        return there and separate and self._handles.intact and self._module_handles.intact

    def _refresh(self) -> None:
        """Find the sites' modules anew where a pipeline operation has replaced them."""
        for site in self.every_site:
            module = self.parts[site.owner].module.get_submodule(site.name)
            if isinstance(site, CrossAttentionSite):
                site.attention = module
            else:
                site.module = module
        self._module_handles.refresh()
        self._linears.forget()
