"""Paired modalities: image and audio, image and text."""
