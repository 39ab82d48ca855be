"""kdbench: which knowledge-distillation method helps on your task, and is its gain real?"""

__version__ = "0.1.0"
