"""Makes the fake hypervisor known to each Python process that a test starts: Python imports this file by itself.

It stands in for the real ones on workers whose `libvirt_uri` begins with `fake:`. All others get the real driver.
"""

try:
    from worker_service.hypervisor import registry
except ImportError:  # another program's Python
    pass
else:
    for name in ("kvm", "vbox"):
        registry._DRIVERS[name] = f"tests.lib.fake_hypervisor:{name}"
