"""Virtual machines on this worker: the one door to their operations.

Every function returns the same plain dictionary as the HTTP facade, ``{"success": …, "message": …}`` with what the verb
adds. A failure also sets the exit code of the ``salt`` command.

:depends: the ``saltern`` package with its ``worker`` extra, libvirt

.. note::
    libvirt's words differ: ``destroy`` here deletes a VM with its disks (virsh: destroy + undefine), ``suspend`` pauses
    it in memory (virsh: suspend), ``shutdown`` asks the guest (virsh: shutdown), after which the disks are saved.
"""

try:
    from worker_service.operations import cache as cache_verbs
    from worker_service.operations import queries, verbs
    from worker_service.state import audit_spool
    from worker_service.state.context import WorkerContext

    MISSING = None
except ImportError as err:
    MISSING = f"saltern's worker_service cannot be imported: {err}. Install it: pip install 'saltern[worker]'"

__virtualname__ = "vmachines"
__func_alias__ = {"list_": "list"}


def __virtual__():
    return __virtualname__ if MISSING is None else (False, MISSING)


def _answer(verb, **parameters):
    if "vmachines.worker" not in __context__:
        reply = verbs.answer(lambda: {"worker": WorkerContext(__opts__.get("saltern", {}).get("settings"))})
        if "worker" not in reply:  # the settings file is not right
            __context__["retcode"] = 1
            return reply
        __context__["vmachines.worker"] = reply["worker"]
    worker = __context__["vmachines.worker"]
    reply = verbs.answer(verb, worker, **parameters)
    if __opts__.get("__cli") == "salt-call":  # jobs are seen by their master, calls of the facade by the facade
        worker.record_audit_event(
            audit_spool.audit_event("salt-call", audit_spool.local_user(), verb.__name__.strip("_"), parameters, reply)
        )
    if not reply["success"]:
        __context__["retcode"] = 1
    return reply


def start(
    name,
    hda_image,
    hypervisor="kvm",
    cpu_count=1,
    mem_size=512,
    sys_arch="x86_64",
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
    network="user",
    run_policy="on_failure",
    uuid=None,
    generation=None,
):
    """Start a VM; returns at once, when the request is durable; ``status`` shows how far it is.

    name
        Its name on this worker.
    hda_image
        URI of the image of its first disk (``file:``, ``http:``, ``https:``, ``s3:``, ``sftp:``,
        ``salt:``), or ``blank:20G``.
        ``URI#sha256=<digest>`` demands those very bytes.
    hypervisor
        ``kvm``
    cpu_count
        Number of processors.
    mem_size
        Memory in MiB.
    sys_arch
        ``x86_64`` or ``i386``
    hda_save_to
        URI to save the disk to when the VM halts; absent or ``""`` discards it.
    hdb_image, hdb_save_to
        The same for a second disk.
    cd_image
        URI of a CD image.
    soft_list
        Software to install before the VM counts as running: ``nginx,postgresql-client`` or a list; an entry may name a
        version, ``nginx=1.22*``. The image needs cloud-init, or Saltern's agent.
    run_agent
        Wait until the guest reports that it is up; the default is whether there is a ``soft_list``.
    hostname, ssh_keys
        Host name of the guest, and public keys that may log in; told to its cloud-init.
    user_data
        URI of a cloud-config document, which is merged with what the seed says.
    minion_master
        Host name or address of a Salt master that the guest is to join. Its key pair is made on the worker;
        ``status`` shows the public key as ``minion_key``.
    network
        ``user``, ``network=NAME``, ``bridge=NAME`` or ``none``
    run_policy
        ``on_failure``, ``always``, ``once`` or ``manual``: with ``always`` the guest's own shutdown keeps the disk.
    uuid, generation
        Given by a master; a person leaves them out.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.start name=web01 hda_image=file:///srv/images/debian.qcow2 mem_size=1024
    """
    return _answer(verbs.start, **locals())


def status(uuid=None, name=None):
    """Show what a VM does: status, progress, where its disks are, how to reach its screen.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.status name=web01
    """
    return _answer(verbs.status, uuid=uuid, name=name)


def agent_log(uuid=None, name=None):
    """Show what the agent in a VM's guest has reported of the software that it installs, the latest last.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.agent_log name=web01
    """
    return _answer(queries.agent_log, uuid=uuid, name=name)


def modify(uuid=None, name=None, hda_save_to=None, hdb_save_to=None, cd_image=None, generation=None):
    """Change where disks are saved when the VM halts (``""`` discards), or the disc in the drive (``""`` ejects).

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.modify name=web01 hda_save_to=file:///srv/saved/web01.qcow2
    """
    return _answer(
        verbs.modify,
        uuid=uuid,
        name=name,
        hda_save_to=hda_save_to,
        hdb_save_to=hdb_save_to,
        cd_image=cd_image,
        generation=generation,
    )


def destroy(uuid=None, name=None, generation=None, timeout_s=30):
    """Power off and discard a VM with all its disks; nothing is saved (virsh: destroy and undefine).

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.destroy name=web01
    """
    return _answer(verbs.destroy, uuid=uuid, name=name, generation=generation, timeout_s=timeout_s)


def suspend(uuid=None, name=None, generation=None):
    """Pause a running VM in memory (virsh: suspend).

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.suspend name=web01
    """
    return _answer(verbs.suspend, uuid=uuid, name=name, generation=generation)


def resume(uuid=None, name=None, generation=None):
    """Let a suspended VM run on (virsh: resume).

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.resume name=web01
    """
    return _answer(verbs.resume, uuid=uuid, name=name, generation=generation)


def shutdown(uuid=None, name=None, generation=None, timeout_s=0):
    """Ask the guest to shut down (virsh: shutdown); then its disks are saved.

    timeout_s
        Seconds to wait for the end of that; 0 returns at once.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.shutdown name=web01 timeout_s=60
    """
    return _answer(verbs.shutdown, uuid=uuid, name=name, generation=generation, timeout_s=timeout_s)


def save_retry(uuid=None, name=None, generation=None):
    """Try again to save disks that lie in ``failed_to_save``.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.save_retry name=web01
    """
    return _answer(verbs.save_retry, uuid=uuid, name=name, generation=generation)


def screen(uuid=None, name=None, ticket_sha256=None, user="", admin=False, view_only=False):
    """Let whoever holds a ticket see a VM's screen through the worker's HTTP facade; once, within 30 seconds.

    ticket_sha256
        SHA-256, in hex, of a secret that the caller has made: the ticket. It is never an argument or a return itself,
        since others can read those; its holder shows it to the facade.
    user
        Who will hold it, for the log.
    admin
        Whether it opens the screen while software is being installed, too.
    view_only
        Whether keys and pointer are withheld from the guest.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.screen name=web01 ticket_sha256=$(printf %s "$TICKET" | sha256sum | cut -d ' ' -f 1)
    """
    return _answer(
        verbs.screen, uuid=uuid, name=name, ticket_sha256=ticket_sha256, user=user, admin=admin, view_only=view_only
    )


def list_():
    """Show every VM of this worker, foreign domains, and what is free.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.list
    """
    return _answer(verbs.list_)


def apply(actions):
    """Carry out a batch of commands with generations, as a master sends them.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.apply '[{"verb":"suspend","uuid":"6d6c7f0e-0000-4000-8000-000000000001","generation":2}]'
    """
    return _answer(verbs.apply, actions=actions)


def plan(
    name,
    hda_image,
    hypervisor="kvm",
    cpu_count=1,
    mem_size=512,
    sys_arch="x86_64",
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
    network="user",
    run_policy="on_failure",
):
    """Show what ``start`` with the same parameters would do: bytes to fetch, whether it fits. Changes nothing.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.plan name=web01 hda_image=file:///srv/images/debian.qcow2 mem_size=1024
    """
    return _answer(queries.plan, **locals())


def capabilities():
    """Show what this worker can do: hypervisors and their acceleration, schemes, networks.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.capabilities
    """
    return _answer(queries.capabilities)


def cache():
    """Show the images in this worker's cache, which VMs use them, and how far those are that are being prefetched.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache
    """
    return _answer(cache_verbs.cache)


def cache_clean(preview=False):
    """Remove the images that no VM uses and nobody pinned from the cache; with ``preview=True`` only tell which.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_clean preview=True
    """
    return _answer(cache_verbs.cache_clean, preview=preview)


def cache_prefetch(uri, pin=False, cancel=False):
    """Fetch an image into this worker's cache before a VM wants it; returns at once, ``cache`` shows how far it is.

    uri
        URI of the image, as for ``start``.
    pin
        Whether it stays there, whoever cleans, until ``cache_unpin``.
    cancel
        Fetch it no longer.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_prefetch uri=file:///srv/images/debian.qcow2 pin=True
    """
    return _answer(cache_verbs.cache_prefetch, uri=uri, pin=pin, cancel=cancel)


def cache_pin(uri=None, sha256=None):
    """Let an image stay in this worker's cache, whoever cleans.

    uri, sha256
        Where it was fetched from, or its digest, as ``cache`` shows them.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_pin uri=file:///srv/images/debian.qcow2
    """
    return _answer(cache_verbs.cache_pin, uri=uri, sha256=sha256)


def cache_unpin(uri=None, sha256=None):
    """Let an image go from this worker's cache again when no VM uses it.

    uri, sha256
        Where it was fetched from, or its digest, as ``cache`` shows them.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_unpin uri=file:///srv/images/debian.qcow2
    """
    return _answer(cache_verbs.cache_unpin, uri=uri, sha256=sha256)


def version():
    """Show the version of Saltern on this worker.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.version
    """
    return _answer(verbs.version)
