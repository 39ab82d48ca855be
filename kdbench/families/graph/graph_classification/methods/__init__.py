"""Methods for graph classification: a file each."""
