"""Segmentation 3d."""
