"""Methods for tasks of several families: a file each."""
