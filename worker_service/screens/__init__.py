"""Screens of VMs: who may see one, by which ticket, and what a viewer who may only look is let through."""
