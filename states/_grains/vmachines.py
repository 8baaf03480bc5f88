"""Grains of a worker, so that Salt can target workers: ``salt -G 'vmachines:hypervisors:kvm' test.ping``.

Only what never changes while the minion runs: what is free, and what runs, is ``vmachines.list``.
"""

try:
    from worker_service import __version__
    from worker_service.contract import PROTOCOL
    from worker_service.state.context import HYPERVISORS
except ImportError:  # no worker yet: the SLS that makes one of it must run all the same
    HYPERVISORS = ()


def vmachines():
    """The version and the hypervisors of this worker; nothing on a host that is none. Asks neither disk nor libvirt."""
    if not HYPERVISORS:
        return {}
    return {"vmachines": {"version": __version__, "protocol": PROTOCOL, "hypervisors": list(HYPERVISORS)}}
