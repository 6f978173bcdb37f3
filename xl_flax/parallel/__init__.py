"""Meshes, logical-axis rules and multi-process set-up."""
