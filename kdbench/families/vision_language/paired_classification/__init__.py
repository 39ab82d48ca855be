"""Paired classification."""
