"""Methods for paired classification: a file each."""
