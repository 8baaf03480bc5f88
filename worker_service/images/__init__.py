"""Disk images on this host: the cache of bases, downloads into it, inspection, and flattening of overlays."""
