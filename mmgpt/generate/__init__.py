"""Requests -> segments: the engine, sampling, guidance."""
