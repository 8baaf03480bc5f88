"""The state of virtual machines on this worker, in SLS.

.. code-block:: yaml

    web01:
      vmachines.running:
        - hda_image: file:///srv/images/debian.qcow2
        - hda_save_to: file:///srv/saved/web01.qcow2
        - mem_size: 1024

The id (or ``name``) is the VM's name here. A parameter that an SLS leaves out has its default when the VM is made, and
is left as it is afterwards. ``test=True`` says what would change and changes nothing; neither does a second apply.

For VMs that no Saltern master looks after: two who want different things of one VM would undo each other's work.

:depends: the ``vmachines`` execution module

What is to be done is decided by ``worker_service.operations.desired_state``; this module looks, does, and reports.
"""

import time

try:
    from worker_service.operations import desired_state

    MISSING = None
except ImportError as err:
    MISSING = f"saltern's worker_service cannot be imported: {err}. Install it: pip install 'saltern[worker]'"

__virtualname__ = "vmachines"

_POLL_S = 0.25


def __virtual__():
    if MISSING is not None:
        return (False, MISSING)
    if "vmachines.status" not in __salt__:
        return (False, "The execution module vmachines is not loaded; `salt-call vmachines.version` says why.")
    return __virtualname__


def running(
    name,
    hda_image=None,
    hypervisor=None,
    cpu_count=None,
    mem_size=None,
    sys_arch=None,
    hda_save_to=None,
    hdb_image=None,
    hdb_save_to=None,
    cd_image=None,
    run_agent=None,
    soft_list=None,
    hostname=None,
    ssh_keys=None,
    user_data=None,
    minion_master=None,
    network=None,
    run_policy=None,
    timeout=300,
):
    """Make sure that a VM runs: started where it is off, resumed where it is paused.

    A VM whose disks were kept goes on with them. One that has halted and was saved begins a new life from
    ``hda_image``: name the same URI in ``hda_image`` and ``hda_save_to`` for a disk that lives on.

    ``hda_save_to``, ``hdb_save_to`` and ``cd_image`` are changed while it runs (``""`` discards, and ejects). Any other
    parameter that differs is an error that says what to do: nothing is restarted behind anybody's back.

    name
        Its name on this worker.
    hda_image
        URI of the image of its first disk, or ``blank:20G``. Needed unless the VM is here already.
    timeout
        Seconds to wait until it runs; ``0`` does not wait for that.

    The other parameters are those of ``vmachines.start``.

    .. code-block:: yaml

        web01:
          vmachines.running:
            - hda_image: file:///srv/images/debian.qcow2
            - hda_save_to: file:///srv/saved/web01.qcow2
            - cpu_count: 2
            - mem_size: 1024

    CLI Example:

    .. code-block:: bash

        salt-call state.single vmachines.running name=web01 hda_image=file:///srv/images/debian.qcow2 test=True
    """
    return _state("running", **locals())


def paused(
    name,
    hda_image=None,
    hypervisor=None,
    cpu_count=None,
    mem_size=None,
    sys_arch=None,
    hda_save_to=None,
    hdb_image=None,
    hdb_save_to=None,
    cd_image=None,
    run_agent=None,
    soft_list=None,
    hostname=None,
    ssh_keys=None,
    user_data=None,
    minion_master=None,
    network=None,
    run_policy=None,
    timeout=300,
):
    """Make sure that a VM is paused in memory; one that is off is started first. Parameters: those of ``running``.

    .. code-block:: yaml

        web01:
          vmachines.paused:
            - hda_image: file:///srv/images/debian.qcow2

    CLI Example:

    .. code-block:: bash

        salt-call state.single vmachines.paused name=web01
    """
    return _state("paused", **locals())


def halted(name, hda_save_to=None, hdb_save_to=None, timeout=600):
    """Make sure that a VM is off and its disks are where they belong; waits until they are saved and verified.

    ``changes`` and the comment say where each disk is and its sha256. A disk without a ``*_save_to`` is discarded when
    its VM is shut down. Disks that were kept because the VM crashed are saved, or stay kept where none has a
    ``*_save_to``. A VM that is not here is halted: a worker forgets a halted VM after a day.

    name
        Its name on this worker.
    hda_save_to, hdb_save_to
        Where to save to, if that is to be changed first; ``""`` discards.
    timeout
        Seconds to wait until it is saved; ``0`` asks for it and does not wait.

    .. code-block:: yaml

        web01:
          vmachines.halted:
            - timeout: 1800

    CLI Example:

    .. code-block:: bash

        salt-call state.single vmachines.halted name=web01
    """
    return _state("halted", **locals())


def absent(name, timeout=60):
    """Make sure that a VM is not here. It is destroyed with its disks, and nothing is saved: use ``halted`` for that.

    name
        Its name on this worker.
    timeout
        Seconds to wait until it is gone.

    .. code-block:: yaml

        web01:
          vmachines.absent: []

    CLI Example:

    .. code-block:: bash

        salt-call state.single vmachines.absent name=web01
    """
    return _state("absent", **locals())


def _state(goal, name, timeout, **parameters):
    """Reach a goal, or foretell how; ``ret`` in Salt's manner."""
    name = str(name)
    ret = {"name": name, "changes": {}, "result": False, "comment": ""}
    try:
        given = desired_state.parse_parameters(parameters)
        limit_s = desired_state.seconds(timeout)
        before = _look(name)
        if __opts__["test"]:
            after, why, more = _foretell(goal, name, given, before)
        else:
            (after, why), more = _reach(goal, name, given, before, limit_s), ""
    except desired_state.GoalError as err:
        ret["comment"] = f"{name}: {err}"
        return ret
    ret["changes"] = desired_state.changes_between(before, after)
    if after and after.get("problem"):
        ret["warnings"] = [f"{name}: {after['problem']}"]
    if why:
        ret["comment"] = f"{name}: {why}"
        return ret
    ret["result"] = None if __opts__["test"] and ret["changes"] else True
    ret["comment"] = " ".join(
        filter(None, (desired_state.comment(goal, name, before, after, foretold=__opts__["test"]), more))
    )
    return ret


def _look(name):
    """The reply of ``vmachines.status``, None where there is no such VM."""
    reply = __salt__["vmachines.status"](name=name)
    if reply["success"]:
        return reply
    if reply.get("code") == "not_found":
        return None
    raise desired_state.GoalError(reply["message"])


def _foretell(goal, name, given, seen):
    """What would be seen last, why the goal would be missed, and what there is to fetch. Nothing is changed."""
    after, steps = desired_state.dry_run(goal, given, seen)
    start = next((step for step in steps if step.do == "start"), None)
    if start is None:
        return after, steps[-1].why, ""
    plan = __salt__["vmachines.plan"](name=name, **start.parameters)
    if why := desired_state.start_obstacle(plan):
        return seen, why, ""
    return after, steps[-1].why, desired_state.to_fetch(plan)


def _reach(goal, name, given, seen, limit_s):
    """Look, decide, do, until the goal is reached, cannot be, or the time is over: what was seen last, and why not."""
    told, deadline = set(), time.monotonic() + limit_s
    while True:
        step = desired_state.decide(goal, given, seen, told)
        if step.do == "done":
            return seen, ""
        if step.do == "fail":
            return seen, step.why
        if step.do == "wait":
            if time.monotonic() >= deadline:
                return seen, desired_state.timeout_message(goal, seen, step, limit_s)
            time.sleep(_POLL_S)
        else:
            reply = __salt__[f"vmachines.{step.do}"](name=name, **step.parameters)
            told.add(step.do)
            # Still at it is no failure, and neither is a VM that went away meanwhile: the next look says what is next.
            if not reply["success"] and reply.get("code") not in ("timeout", "not_found"):
                return seen, reply["message"]
        try:
            seen = _look(name)
        except desired_state.GoalError as err:  # libvirt is being restarted, say: that passes
            if time.monotonic() >= deadline:
                return seen, str(err)
