"""Salt engine: the watcher of Saltern on a worker. The minion restarts it when it ends.

.. code-block:: yaml

    engines:
      - vmachines_watcher: {}
"""

import logging

try:
    from worker_service.state.context import WorkerContext
    from worker_service.watcher.loop import Watcher
    from worker_service.watcher.signed_events import signed

    MISSING = None
except ImportError as err:
    MISSING = f"saltern's worker_service cannot be imported: {err}"

log = logging.getLogger(__name__)

__virtualname__ = "vmachines_watcher"


def __virtual__():
    return __virtualname__ if MISSING is None else (False, MISSING)


def start():
    """Watch the VMs of this worker and fire ``vmachines/<minion>/<uuid>/<status>`` for each change."""
    worker, minion = WorkerContext(__opts__.get("saltern", {}).get("settings")), __opts__["id"]
    fire = signed(worker.identity, minion, lambda tag, data: __salt__["event.send"](tag, dict(data)))
    Watcher(worker, minion, fire).run()
