"""Runs in every denoiser call: the edits of the request act here."""
