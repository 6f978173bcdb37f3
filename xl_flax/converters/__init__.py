"""Between our checkpoints and the folders that other tools read: one file per family of models."""
