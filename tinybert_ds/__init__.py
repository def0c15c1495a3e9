"""TinyBERT-DS: DeepSpeed-accelerated distillation of language encoders."""

__version__ = "0.1.0"
