"""What the training command is made of."""
