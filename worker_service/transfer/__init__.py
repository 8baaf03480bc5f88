"""Disk images on their way in and out: one module for each scheme of URIs."""
