"""Disk images on this host: the cache of bases, downloads, inspection, and the flattening of overlays."""
