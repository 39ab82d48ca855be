"""Distillation on graphs: text-attributed node classification."""
