"""Grains of a worker, so that Salt can target workers: ``salt -G 'vmachines:hypervisors:kvm' test.ping``.

They hold only facts that never change while the minion runs. ``vmachines.list`` shows the VMs and the free capacity.
"""

try:
    from worker_service import __version__
    from worker_service.contract import PROTOCOL
    from worker_service.state.context import HYPERVISORS
except ImportError:  # not a worker yet: the SLS that provisions one must run all the same
    HYPERVISORS = ()


def vmachines():
    """Return the version and the hypervisors of a worker, without I/O. Other hosts have no such grains."""
    if not HYPERVISORS:
        return {}
    return {"vmachines": {"version": __version__, "protocol": PROTOCOL, "hypervisors": list(HYPERVISORS)}}
