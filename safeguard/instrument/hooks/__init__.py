"""Installed once, hold no policy: they call the attachment of the request that is running."""
