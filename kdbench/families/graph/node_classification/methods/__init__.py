"""Methods for node classification: a file each."""
