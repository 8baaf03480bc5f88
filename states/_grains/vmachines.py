"""Grains of a worker, so that Salt can target workers: ``salt -G 'vmachines:hypervisors:kvm' test.ping``.

They hold only facts that never change while the minion runs. ``vmachines.list`` shows the VMs and the free capacity.
"""

try:
    from worker_service import __version__
    from worker_service.contract import PROTOCOL
    from worker_service.core.errors import SalternError
    from worker_service.core.settings import load
except ImportError:  # not a worker yet: the SLS that provisions one must run all the same
    load = None


def vmachines():
    """Return the version of a worker and the hypervisors in its settings. Other hosts have no such grains."""
    if load is None:
        return {}
    try:
        hypervisors = list(load(__opts__.get("saltern", {}).get("settings")).hypervisors)
    except SalternError:  # the verbs say what is wrong with the settings
        hypervisors = []
    return {"vmachines": {"version": __version__, "protocol": PROTOCOL, "hypervisors": hypervisors}}
