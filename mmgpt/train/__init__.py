"""Recipes -> trained checkpoints."""
