"""A VM that Salt started past the master is adopted on the real stack: its process goes on, its worker learns whose."""

from devstack.guests import build_bootchain
from tests.lib.support import eventually, virsh
from worker_service.state.record_store import RecordStore

NAME = "past-the-master"


def test_running_vm_is_adopted_without_a_restart(stack):
    layout = stack.layout
    build_bootchain(layout.images / "adopted.raw", variant="spin")
    parameters = {"name": NAME, "hda_image": f"file://{layout.images}/adopted.raw", "mem_size": 32}
    uuid = stack.worker_api("POST", "/vmachines/start", parameters).body["uuid"]
    eventually(lambda: stack.worker_api("GET", f"/vmachines/status?name={NAME}").body["status"] == "running")
    store = RecordStore(layout.data_root)
    domain, generation = virsh("domid", uuid), store.read(uuid).generation

    def unmanaged():
        return {vm["name"]: vm for vm in stack.api("GET", f"/api/v1/workers/{layout.minion}").body["unassigned_vms"]}

    eventually(lambda: NAME in unmanaged())
    assert (unmanaged()[NAME]["uuid"], unmanaged()[NAME]["owner"]) == (uuid, "")

    made = stack.api("POST", f"/api/v1/workers/{layout.minion}/vmachines/{uuid}/adopt", {"owner": "admin"})
    assert (made.status, made.body["status"], made.body["worker"]) == (201, "running", layout.minion)
    eventually(lambda: store.read(uuid).owner == "admin")
    eventually(lambda: stack.api("GET", f"/api/v1/vmachines/{NAME}").body["reason"] == "")
    assert NAME not in unmanaged()
    assert (virsh("domid", uuid), store.read(uuid).generation) == (domain, generation + 1)

    gone = stack.api("POST", f"/api/v1/vmachines/{NAME}/destroy?timeout_s=60")
    assert gone.body["done"] is True
