"""Synthetic languages: one meaning layer, many surfaces, every annotation known."""
