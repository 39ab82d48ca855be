"""Object detection: bounding boxes and classes in images."""
