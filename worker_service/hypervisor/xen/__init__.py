"""The `xen` driver: libvirt's libxl driver in dom0."""
