"""`/metrics` for Prometheus, computed for each request. Needs a token, because it is about all VMs."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from master_service.api.protocol.auth import TheMaster
from master_service.api.protocol.errors import responses
from master_service.planning.status import MasterStatus, master_status
from master_service.saltapi.signatures import Doubt

router = APIRouter(tags=["health"], responses=responses(401, 403))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(master: TheMaster) -> Response:
    """Return VMs by status, VMs with a problem, workers by state, and the age of the event stream, for Prometheus."""
    registry = CollectorRegistry()
    vms = await master.context.store.queries.vms()
    counted = Counter(master_status(vm) for vm in vms)
    statuses = Gauge("saltern_vms", "VMs that are not destroyed, by status", ["status"], registry=registry)
    for status in MasterStatus:
        if status is not MasterStatus.DESTROYED:
            statuses.labels(status.value).set(counted[status])
    refused = Gauge("saltern_vms_with_problem", "VMs whose newest command has a problem", registry=registry)
    refused.set(sum(vm.current_dispatch.problem is not None for vm in vms))
    known = await master.context.store.queries.workers()
    workers = [worker for worker in known if worker.key]
    states = Gauge("saltern_workers", "Workers, by state", ["state"], registry=registry)
    silent = sum(worker.unreachable_since is not None for worker in workers)
    states.labels("unreachable").set(silent)
    states.labels("reachable").set(len(workers) - silent)
    states.labels("waiting").set(len(known) - len(workers))
    doubts = Gauge(
        "saltern_messages_not_believed", "Messages refused since the start, by reason", ["reason"], registry=registry
    )
    for doubt in Doubt:
        doubts.labels(doubt.name.lower()).set(
            sum(n for (_, found), n in master.context.trust.doubts.items() if found is doubt)
        )
    draining = Gauge("saltern_workers_draining", "Workers that get no new VMs", registry=registry)
    draining.set(sum(worker.draining for worker in workers))
    age = Gauge("saltern_event_stream_age_seconds", "Seconds since the last event; -1: not open", registry=registry)
    age_s = master.listener.age_s
    age.set(-1 if age_s is None else age_s)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
