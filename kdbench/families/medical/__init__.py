"""Distillation on medical images: volumetric segmentation."""
