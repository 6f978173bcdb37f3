"""Evaluations of saved checkpoints."""
