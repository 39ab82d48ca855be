"""Methods for segmentation 3d: a file each."""
