"""XL-Flax: pretrain, evaluate and convert multilingual encoders in JAX."""

__version__ = "0.3.0"
