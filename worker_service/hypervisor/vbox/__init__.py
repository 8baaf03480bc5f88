"""The driver for VirtualBox, which it drives by VBoxManage."""
