"""Tensors in one process: backbones, bidirectionality, pooling, losses, weights. No ranks."""
