"""Helpers around training, under PyTorch's names: ``tinygrad_ish.utils.data``."""
