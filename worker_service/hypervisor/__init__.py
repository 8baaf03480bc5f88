"""Drivers of hypervisors behind one interface. Only this folder imports libvirt."""
