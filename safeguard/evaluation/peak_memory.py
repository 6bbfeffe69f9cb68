"""How much memory a call takes while it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The most that a call holds at once beyond what was held before it: on CUDA as torch counts it, else summed over every
    allocation that its profiler sees. What a first call keeps for later ones counts too: warm up before.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    # What the profiler tells in public leaves out what an operation gives back before it ends.
    events = [kernel_event for kernel_event in profile.profiler.kineto_results.events() if kernel_event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda kernel_event: kernel_event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
