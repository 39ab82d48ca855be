"""Methods for domain adaptation: a file each."""
