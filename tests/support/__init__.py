"""Helpers of the tests: tiny denoisers and pipelines of every family."""
