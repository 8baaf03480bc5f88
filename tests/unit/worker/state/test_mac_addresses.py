"""Each VM of a worker has a network card with an address of its own."""

import msgspec

from tests.unit.worker.state.test_record_store import record
from worker_service.state.mac_addresses import free_mac, mac_address, mac_of


def test_address_belongs_to_the_vm():
    assert mac_address("a") == mac_address("a") != mac_address("b")
    assert mac_address("a").startswith("52:54:00:")
    vm = record()
    assert mac_of(vm) == mac_address(vm.uuid)


def test_address_that_another_vm_has_is_not_used():
    vm = record()
    first, second, third = (mac_address(vm.uuid, number) for number in range(3))
    assert free_mac(vm, {"52:54:00:00:00:01"}) == first
    assert free_mac(vm, {first}) == second
    assert free_mac(vm, {first, second}) == third
    moved = msgspec.structs.replace(vm, mac=third)
    assert free_mac(moved, {first}) == third
