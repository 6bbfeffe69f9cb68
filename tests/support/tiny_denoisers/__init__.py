"""Tiny random models of every text-conditioned denoiser of diffusers, to try what protects on all of them without weights.

``SPECIMENS`` names them by class; ``UNBUILT`` says for every class that is left out why.
"""

from __future__ import annotations

from typing import Final

from tests.support.tiny_denoisers.cross import CROSS
from tests.support.tiny_denoisers.cross_video import CROSS_VIDEO
from tests.support.tiny_denoisers.joint_denoisers import JOINT
from tests.support.tiny_denoisers.joint_video import JOINT_VIDEO
from tests.support.tiny_denoisers.single import SINGLE
from tests.support.tiny_denoisers.specimen import Specimen
from tests.support.tiny_denoisers.unets import UNETS

__all__ = ["SPECIMENS", "UNBUILT", "Specimen"]

SPECIMENS: Final[dict[str, Specimen]] = {
    name: specimen
    for shelf in (UNETS, CROSS, CROSS_VIDEO, JOINT, JOINT_VIDEO, SINGLE)
    for name, specimen in shelf.specimens.items()
}

UNBUILT: Final[dict[str, str]] = {
    "OmniGenTransformer2DModel": "reads token ids and embeds them itself: no argument carries token states",
    "Cosmos3OmniTransformer": "reads token ids and embeds them itself, and one image alone: its packed sequence has no rows",
}
