"""Hypervisor hosts in emulation: a Xen dom0 or a VirtualBox host, with the code of this clone at the same paths.

    with xen_host(folder) as host:                  # builds what is missing, starts it, waits until libvirtd answers
        done = host.run(["virsh", "list"])          # as root; .stdout, .returncode; Trouble if it fails (check=False)
        for line in host.lines([str(PYTHON), …]):   # each line of output as soon as it is there
            …
        host.put(file, "/root/file"); host.get("/root/file", file)
        host.reboot()                               # a power cut: guests end, the disk stays
        host.ports[8081]                            # the port on 127.0.0.1 of each port in `ports=`
        host.written()                              # what it wrote to its serial port
    # stopped; `folder` keeps serial.log and qemu.log

The clone is mounted read-only at its own path, and so is the folder of .venv. From inside, this machine is 10.0.2.2.

    machine     one emulated host: start, commands, reboot, stop
    connection  the way into it
    image       what all images have in common; common/ has files for all
    xen         the image of the Xen host; xen_host: its start
    vbox        the image of the VirtualBox host; vbox_host: its start
    suite       tests/hypervisors, run in a host
    code        the disks with this clone and its .venv
"""

from __future__ import annotations

from devstack.hosts.machine import Image, Machine
from devstack.hosts.xen import build_xen
from devstack.hosts.xen_host import xen_host

__all__ = ["Image", "Machine", "build_xen", "xen_host"]
