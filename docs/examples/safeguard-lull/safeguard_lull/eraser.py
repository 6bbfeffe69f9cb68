"""``lull``: linear layers that were taught to go a part of the way to the picture without the concept."""

from safeguard.sdk import DeltaEraser, edits_per_concept


class Lull(DeltaEraser):
    name, version = "lull", "1.0"

    def edits(self, concepts, params, pipeline):
        """Called once for a policy: params.adapter names the file that the training wrote."""
        return edits_per_concept(concepts, self.name, params["adapter"], pipeline)
