"""``python -m kdbench.cli``: the ``kdbench`` command."""

from kdbench.cli.main import console

if __name__ == "__main__":
    console()
