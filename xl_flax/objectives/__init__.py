"""Objectives: each turns a batch into a loss."""
