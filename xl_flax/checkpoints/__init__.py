"""Saving, resuming and loading checkpoints."""
