"""Virtual machines on this worker: all operations for them.

Every function returns the same dictionary as the worker's HTTP API, ``{"success": …, "message": …}`` with further
fields of the verb. A failure also sets the exit code of the ``salt`` command.

:depends: the ``saltern`` package with its ``worker`` extra, libvirt

.. note::
    libvirt uses other words. ``destroy`` deletes a VM with its disks (virsh: destroy and undefine). ``suspend`` pauses
    it in memory (virsh: suspend). ``shutdown`` asks the guest (virsh: shutdown); then its disks are saved or kept here.
"""

try:
    from worker_service.operations import cache as cache_verbs
    from worker_service.operations import queries, salt_job, verbs
    from worker_service.state.context import WorkerContext

    MISSING = None
except ImportError as err:
    MISSING = f"saltern's worker_service cannot be imported: {err}. Install it: pip install 'saltern[worker]'"

__virtualname__ = "vmachines"
__func_alias__ = {"list_": "list"}


def __virtual__():
    return __virtualname__ if MISSING is None else (False, MISSING)


def _answer(verb, **parameters):
    from salt.utils.ctx import get_request_context  # noqa: PLC0415 - importing salt changes how Python imports

    if "vmachines.worker" not in __context__:
        reply = verbs.answer(lambda: {"worker": WorkerContext(__opts__.get("saltern", {}).get("settings"))})
        if "worker" not in reply:  # the settings file is wrong
            __context__["retcode"] = 1
            return reply
        __context__["vmachines.worker"] = reply["worker"]
    job = get_request_context().get("data", {})
    reply = salt_job.answer(__context__["vmachines.worker"], verb, parameters, job, __opts__)
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
    origin=None,
    uuid=None,
    generation=None,
):
    """Start a VM. Returns as soon as the request is durable; ``status`` shows the progress.

    name
        Its name on this worker: no number, boolean or date in YAML, such as ``0042``, ``1.10`` or ``on``. A VM that has
        such a name already is named as ``name='"0042"'``.
    hda_image
        URI of the image of its first disk (``file:``, ``http:``, ``https:``, ``s3:``, ``sftp:``,
        ``salt:``), or ``blank:20G``. ``URI#sha256=<digest>`` accepts only those bytes.
    hypervisor
        ``kvm``, ``xen`` or ``vbox``: one that this worker has, see ``vmachines.capabilities``
    cpu_count
        Number of processors.
    mem_size
        Memory in MiB.
    sys_arch
        ``x86_64`` or ``i386``
    hda_save_to
        URI to save the disk to at a halt. Without it, or with ``keep``, it stays on this worker; ``""`` discards it.
    hdb_image, hdb_save_to
        The same for a second disk.
    cd_image
        URI of a CD image.
    soft_list
        Software to install before the VM counts as running: ``nginx,postgresql-client`` or a list; an entry may name a
        version, ``nginx=1.22*``. The image needs cloud-init, or Saltern's agent.
    run_agent
        Whether the guest must report before it counts as running. Default: true with a ``soft_list``.
    hostname, ssh_keys
        Host name of the guest, and public keys that may log in, for its cloud-init.
    user_data
        URI of a cloud-config document, which is merged with the seed.
    minion_master
        Host name or address of a Salt master for the guest to join. The worker makes the key pair, and ``status``
        shows the public key as ``minion_key``.
    network
        ``user``, ``network=NAME``, ``bridge=NAME`` or ``none``
    run_policy
        ``on_failure``, ``always``, ``once`` or ``manual``: with ``always`` the guest's own shutdown saves nothing.
    origin
        Saves to start from instead of the images: ``{hda: 'URI#sha256=DIGEST'}``. Kept disks come first.
    uuid, generation
        For a Saltern master; leave them out on the command line.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.start name=web01 hda_image=file:///srv/images/debian.qcow2 mem_size=1024
    """
    return _answer(verbs.start, **locals())


def status(uuid=None, name=None):
    """Show the status of a VM, with its progress, the places of its disks, and the address of its console.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.status name=web01
    """
    return _answer(verbs.status, uuid=uuid, name=name)


def agent_log(uuid=None, name=None):
    """Show the reports of the agent in a VM's guest about the software that it installs, the latest last.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.agent_log name=web01
    """
    return _answer(queries.agent_log, uuid=uuid, name=name)


def modify(uuid=None, name=None, hda_save_to=None, hdb_save_to=None, cd_image=None, generation=None):
    """Change the URIs that disks are saved to (``keep``, or ``""`` discards), or the CD in the drive (``""`` ejects).

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
    """Power off a VM and discard it with all its disks, unsaved (virsh: destroy and undefine).

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
    """Ask the guest to shut down (virsh: shutdown); then its disks are saved, kept here or discarded.

    timeout_s
        Seconds to wait until that is done; 0 returns at once.

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


def screen(uuid=None, name=None, ticket_sha256=None, user="", admin=False, view_only=False, token_sha256="", disk=""):
    """Register a ticket that opens a VM's console through the worker's HTTP API, once and within 30 seconds.

    ticket_sha256
        SHA-256, in hex, of a secret of the caller. The secret is never an argument, because others can read those.
    user, disk
        The holder of the ticket, for the log; ``hda`` or ``hdb``: it opens that saved disk, and no console.
    admin
        Whether the ticket opens the console also while software is being installed.
    view_only
        Whether the guest gets no keys and no pointer.
    token_sha256
        SHA-256 of the token of the worker's HTTP API without which the ticket and its view end.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.screen name=web01 ticket_sha256=$(printf %s "$TICKET" | sha256sum | cut -d ' ' -f 1)
    """
    return _answer(verbs.screen, **locals())


def list_(tombstones=False):
    """Show every VM of this worker, foreign domains, the free capacity, and the space of kept disks.

    tombstones
        Also show ``uuid: generation`` of the VMs that were destroyed here in the last days.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.list
    """
    return _answer(verbs.list_, tombstones=tombstones)


def apply(actions):
    """Execute a batch of commands with generations, as a master sends them.

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
    origin=None,
    uuid=None,
    owner=None,
):
    """Show the effects of ``start`` with these parameters, without starting: bytes to fetch, and whether it fits.

    uuid, owner
        For a Saltern master; leave them out on the command line.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.plan name=web01 hda_image=file:///srv/images/debian.qcow2 mem_size=1024
    """
    return _answer(queries.plan, **locals())


def capabilities():
    """Show what the hypervisors of this worker can do, its URI schemes, and its networks.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.capabilities
    """
    return _answer(queries.capabilities)


def cache():
    """Show the images in this worker's cache with the VMs that use them, and the progress of prefetches.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache
    """
    return _answer(cache_verbs.cache)


def cache_clean(preview=False):
    """Remove unused images that are not pinned from the cache; with ``preview=True`` only list them.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_clean preview=True
    """
    return _answer(cache_verbs.cache_clean, preview=preview)


def cache_prefetch(uri, pin=False, cancel=False):
    """Fetch an image into this worker's cache before a VM needs it. Returns at once; ``cache`` shows the progress.

    uri
        URI of the image, as for ``start``.
    pin
        Whether the image stays in the cache until ``cache_unpin``.
    cancel
        Stop the prefetch.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_prefetch uri=file:///srv/images/debian.qcow2 pin=True
    """
    return _answer(cache_verbs.cache_prefetch, uri=uri, pin=pin, cancel=cancel)


def cache_pin(uri=None, sha256=None):
    """Pin an image: it stays in this worker's cache until it is unpinned.

    uri, sha256
        Its source or its digest, as ``cache`` shows them.

    CLI Example:

    .. code-block:: bash

        salt worker1 vmachines.cache_pin uri=file:///srv/images/debian.qcow2
    """
    return _answer(cache_verbs.cache_pin, uri=uri, sha256=sha256)


def cache_unpin(uri=None, sha256=None):
    """Unpin an image: it may be removed from this worker's cache when no VM uses it.

    uri, sha256
        Its source or its digest, as ``cache`` shows them.

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
