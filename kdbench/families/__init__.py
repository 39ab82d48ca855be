"""Task families: a folder each, with a package for each kind of its tasks."""
