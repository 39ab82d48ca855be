"""Task families: one folder each, plus the methods that every family shares."""
