"""Vectors -> vectors (the shared transformer) -> codes (heads) -> raw values (codecs)."""
