"""The state of virtual machines on this worker, in SLS.

.. code-block:: yaml

    web01:
      vmachines.running:
        - hda_image: file:///srv/images/debian.qcow2
        - hda_save_to: file:///srv/saved/web01.qcow2
        - mem_size: 1024

The id (or ``name``) is the VM's name on this worker. Write it in quotes if YAML would read it as a number: Salt takes
the id for a ``name`` that is no string. A parameter that an SLS leaves out gets its default when the VM is made, and
keeps its value afterwards. ``test=True`` shows the changes and makes none. A second apply changes nothing.

Use it only for VMs that no Saltern master manages: otherwise the two would undo each other's work.

:depends: the ``vmachines`` execution module

``worker_service.operations.desired_state`` decides what to do. This module looks, acts, and reports.
"""

import time

try:
    from worker_service.operations import desired_state, state_report

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
    from_image=False,
    timeout=300,
):
    """Make sure that a VM runs: started where it is off, resumed where it is paused.

    A VM whose disks were kept goes on with them. One that was saved goes on from its last save: each disk that was
    saved starts from there, and another one from its image. The comment says so, also with ``test=True``. Another
    ``hda_image`` for such a VM is an error, unless ``from_image`` says that its work is to be left behind.

    ``hda_save_to``, ``hdb_save_to`` and ``cd_image`` are changed while it runs. Without a ``*_save_to``, or with
    ``keep``, a disk stays on this worker when the VM halts; ``""`` discards it, and ejects a CD. Any other parameter
    that differs is an error that says what to do. The state never restarts a VM by itself.

    name
        Its name on this worker.
    hda_image
        URI of the image of its first disk, or ``blank:20G``. Required unless the VM is here already.
    from_image
        With ``true``, a VM that was saved starts a new life from its images. The save stays.
    timeout
        Seconds to wait until it runs; ``0`` does not wait.

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
    from_image=False,
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
    """Make sure that a VM is off and its disks are saved and verified.

    ``changes`` and the comment name the place and the sha256 of each disk that is saved. A disk without a ``*_save_to``
    is kept on this worker, and one with ``""`` is discarded. Disks that were kept after a crash are saved where they
    have a ``*_save_to``; they are discarded only if this state says ``""``. A VM that is not here counts as halted.

    name
        Its name on this worker.
    hda_save_to, hdb_save_to
        New places to save to; ``keep`` keeps, ``""`` discards.
    timeout
        Seconds to wait until it is saved; ``0`` requests the shutdown and does not wait.

    .. code-block:: yaml

        web01:
          vmachines.halted:
            - timeout: 1800

    CLI Example:

    .. code-block:: bash

        salt-call state.single vmachines.halted name=web01
    """
    return _state("halted", name=name, hda_save_to=hda_save_to, hdb_save_to=hdb_save_to, timeout=timeout)


def absent(name, timeout=60):
    """Make sure that a VM is not here. It is destroyed with its disks, unsaved; ``halted`` saves them.

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
    return _state("absent", name=name, timeout=timeout)


def _state(goal, name, timeout, from_image=False, **parameters):
    """Reach a goal, or with ``test=True`` only compute how; return what Salt expects of a state."""
    test = __opts__["test"]
    ret = {"name": str(name), "changes": {}, "result": False, "comment": ""}
    try:
        name = desired_state.name_of(name)
        given = desired_state.parse_parameters(parameters)
        limit_s = desired_state.seconds(timeout)
        new_life = desired_state.flag("from_image", from_image)
        before = _look(name)
        if test:
            after, failure, note = _dry_run(goal, name, given, before, new_life)
        else:
            after, failure, note = _reach(goal, name, given, before, limit_s, new_life)
    except desired_state.GoalError as err:
        return {**ret, "comment": f"{name}: {err}"}
    ret["changes"] = state_report.changes_between(before, after)
    if after and after.problem:
        ret["warnings"] = [f"{name}: {after.problem}"]
    if failure:
        return {**ret, "comment": f"{name}: {failure}"}
    ret["result"] = None if test and ret["changes"] else True
    ret["comment"] = f"{state_report.comment(goal, name, before, after, dry_run=test)} {note}".rstrip()
    return ret


def _look(name):
    """Return the status of a VM, or None if there is no such VM."""
    return desired_state.parse_status(__salt__["vmachines.status"](name=name))


def _dry_run(goal, name, given, observed, new_life):
    """Return the last status, why the goal would be missed, and what a start would fetch. Change nothing."""
    after, steps = desired_state.dry_run(goal, given, observed, from_image=new_life)
    start = next((step for step in steps if step.do == "start"), None)
    if start is None:
        return after, steps[-1].reason, ""
    plan = __salt__["vmachines.plan"](name=name, **desired_state.plannable(start.parameters))
    if obstacle := state_report.start_obstacle(plan):
        return observed, obstacle, ""
    note = f"{state_report.start_note(start.parameters, observed)} {state_report.to_fetch(plan)}".strip()
    return after, steps[-1].reason, note


def _reach(goal, name, given, observed, limit_s, new_life):
    """Look, decide and act until the goal is reached or missed. Return the last status, why it was missed, a note."""
    done, deadline, note = set(), time.monotonic() + limit_s, ""
    while True:
        step = desired_state.decide(goal, given, observed, done, from_image=new_life)
        if step.do == "done":
            return observed, "", note
        if step.do == "fail":
            return observed, step.reason, note
        if step.do == "wait":
            if time.monotonic() >= deadline:
                return observed, desired_state.timeout_message(goal, observed, step, limit_s), note
            time.sleep(_POLL_S)
        else:
            reply = __salt__[f"vmachines.{step.do}"](name=name, **step.parameters)
            done.add(step.do)
            note = state_report.start_note(step.parameters, observed) if step.do == "start" else note
            # A verb that still works is no failure, and neither is a VM that went away: the next status decides.
            if not reply["success"] and reply.get("code") not in ("timeout", "not_found"):
                return observed, reply["message"], note
        try:
            observed = _look(name)
        except desired_state.GoalError as err:  # passes: libvirt may be restarting
            if time.monotonic() >= deadline:
                return observed, str(err), note
