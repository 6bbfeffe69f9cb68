"""Runs once, when a pipeline is protected: where its denoisers read text, and how its texts are encoded."""
