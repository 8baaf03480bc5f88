"""Random lives of two VMs on one fake store: a life replaces only saves that it has a part in, and drops no disk.

The rules are those of the worker: of commands, of halts, of claims. The store, and the steps between them, are fakes: a
write of a guest is a new digest, each file has a version, and people put files of their own at the targets.
"""

from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_service.contract import KEEP, HaltCause, Spec
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import DomainState, Power
from worker_service.state.command_rules import after_modify, after_save_retry, after_shutdown, after_start
from worker_service.state.lifecycle import after_halt
from worker_service.state.outside_changes import started_outside, was_started
from worker_service.state.record import (
    NOT_FLAT,
    NOT_SAVED,
    SETTLED,
    Disk,
    Phase,
    Record,
    move,
    with_disk,
    with_save,
)
from worker_service.steps.manifest import Manifest, SavedBy, claim_of, may_replace
from worker_service.transfer.uri import parse

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLACES = ("file:///s/a", "file:///s/b")
IMAGE = "file:///s/image"
ENDS = st.sampled_from((*PLACES, "", KEEP))
DISKS = ("hda", "hdb")
ON = DomainState(Power.RUNNING)
CAUSES = st.sampled_from((HaltCause.GUEST, HaltCause.HOST, HaltCause.CRASHED, HaltCause.KILLED))


class Store:
    """The files of a store: place -> digest, version, manifest."""

    def __init__(self):
        self.files = {}
        self.count = 0

    def put(self, place, digest, manifest):
        self.count += 1
        self.files[place] = SimpleNamespace(digest=digest, version=str(self.count), manifest=manifest)

    def version_to_replace(self, record, disk, fetched=None):
        """As `manifest.version_to_replace`."""
        there = self.files.get(record.save_to(disk))
        if there is None:
            return None
        claim = claim_of(record, disk, record.owner)
        known = may_replace(claim, parse(record.save_to(disk)), there.manifest, just_fetched=there.version == fetched)
        return there.version if known else None

    def commit(self, place, digest, observed, life):
        """As a target: replace what was observed, recognize the bytes, or take a conflict name."""
        there = self.files.get(place)
        if there is not None and there.version != observed:
            return place if there.digest == digest else self.commit(f"{place}.{digest[:12]}", digest, None, life)
        assert there is None or there.digest in life, "a life replaced a save that it has no part in"
        return place


class VM:
    """One VM: its record, what its disks hold, and the bytes that its life started from or has saved."""

    def __init__(self, store, uuid, ends):
        self.store, self.life, self.content = store, set(), {}
        targets = {f"{disk}_save_to": None if end == KEEP else end for disk, end in zip(DISKS, ends, strict=True)}
        spec = Spec(name=uuid, hda_image=IMAGE, hdb_image="blank:1G", **targets)
        self.record = Record(
            uuid=uuid, spec=spec, generation=1, phase=Phase.DONE, phase_since=NOW, created_at=NOW, owner="ann"
        )

    def command(self, rule, *arguments, **more):
        try:
            self.record = rule(self.record, *arguments, **more)
        except Refused:
            return False
        return True

    def looked_at(self, changes):
        """As `read_target_versions`: what lies at the targets that a command names."""
        targets = {disk: uri for disk in DISKS if (uri := changes.get(f"{disk}_save_to")) and uri != KEEP}
        named = msgspec.structs.replace(
            self.record,
            spec=msgspec.structs.replace(self.record.spec, **{f"{disk}_save_to": uri for disk, uri in targets.items()}),
        )
        return {disk: self.store.version_to_replace(named, disk) for disk in targets}

    def start(self, how):
        spec, origin = self.record.spec, {}
        if how == "last save":
            origin = self.record.last_saves
        elif how != "image":
            spec = msgspec.structs.replace(spec, hda_image=how)
        known = self.record.phase in SETTLED
        if self.command(after_start, spec, None, NOW, {}, origin=origin) and known:
            if self.record.phase is Phase.FETCHING and not self.fetch():
                self.record = move(self.record, Phase.START_FAILED, NOW)
                return
            self.boot()

    def fetch(self):
        """As the step: note what each disk is made of, and what lies at its target."""
        disks, self.life, fetched = {}, set(), {}
        for disk in DISKS:
            text = self.record.image(disk)
            if text.startswith("blank:"):
                disks[disk] = Disk(virtual_size=1)
                continue
            uri = parse(text)
            there = self.store.files.get(uri.text)
            digest = uri.sha256 or (there and there.digest)  # a digest may come from the cache
            if digest is None:
                return False
            disks[disk] = Disk(base=digest)
            self.life.add(digest)
            if not uri.sha256:
                fetched[uri.text] = there.version
        self.record = move(self.record, Phase.BUILDING, NOW, disks=disks)
        for disk in self.record.disks_to_save:
            version = self.store.version_to_replace(self.record, disk, fetched.get(self.record.save_to(disk)))
            self.record = with_disk(self.record, disk, target_version=version)
        return True

    def boot(self):
        """As the steps: from here on a guest writes."""
        if self.record.phase is Phase.BUILDING:
            disks = {name: msgspec.structs.replace(disk, **NOT_SAVED) for name, disk in self.record.disks.items()}
            self.record = move(self.record, Phase.BOOTING, NOW, disks=disks)
            self.record = move(self.record, Phase.UP, NOW, halt_cause=None)
        self.write()

    def write(self):
        self.store.count += 1
        self.content = {disk: f"{self.store.count:063x}{number}" for number, disk in enumerate(DISKS)}

    def start_outside(self):
        if was_started(self.record, ON):
            versions = {
                disk: self.store.version_to_replace(self.record, disk)
                for disk in self.record.disks_to_save
                if self.record.disks[disk].saved_to
            }
            self.record = started_outside(self.record, ON, NOW, "boot", versions)
            self.write()

    def halt(self, cause, requested):
        if self.record.phase is Phase.UP:
            known = msgspec.structs.replace(self.record, shutdown_asked=requested)
            self.end(after_halt(known, cause), cause)

    def end(self, ending, cause):
        self.record = move(self.record, ending, NOW, halt_cause=cause, shutdown_asked=False)
        self.go_on()

    def modify(self, disk, end):
        changes = {f"{disk}_save_to": end}
        self.command(after_modify, changes, None, self.looked_at(changes))

    def shutdown(self):
        if self.record.phase is Phase.KEPT and self.command(after_shutdown, None, NOW):
            self.go_on()

    def fail_to_save(self, cause):
        """Its target did not answer at this halt; it is saved when somebody asks for it."""
        if self.record.phase is Phase.UP and after_halt(self.record, cause) is Phase.FLATTENING:
            self.record = move(self.record, Phase.FLATTENING, NOW, halt_cause=cause)
            self.flatten()
            self.record = move(self.record, Phase.SAVE_FAILED, NOW)

    def retry(self):
        if self.record.phase is Phase.SAVE_FAILED and self.command(after_save_retry, None, NOW):
            self.go_on()

    def flatten(self):
        for disk in self.record.unsaved_disks:
            if self.record.disks[disk].flat_sha256 is None:
                self.record = with_disk(self.record, disk, flat_sha256=self.content[disk], flat_size=1)

    def go_on(self):
        """As the steps after a halt, each of which is done twice, as after a crash before its note."""
        if self.record.phase is Phase.FLATTENING:
            self.flatten()
            self.record = move(self.record, Phase.SAVING, NOW)
            for disk in self.record.unsaved_disks:
                known, to = self.record.disks[disk], self.record.save_to(disk)
                for _ in range(2):
                    saved_to = self.store.commit(to, known.flat_sha256, known.target_version, self.life)
                    by = SavedBy(self.record.uuid, self.record.owner)
                    if self.store.files.get(saved_to) is None or self.store.files[saved_to].digest != known.flat_sha256:
                        self.store.put(saved_to, known.flat_sha256, Manifest(known.flat_sha256, saved_to, by))
                self.life.add(known.flat_sha256)
                self.record = with_save(self.record, disk, saved_to)
            if self.record.disks_stay:
                for disk in self.record.disks_to_save:
                    self.record = with_disk(
                        self.record, disk, **NOT_FLAT, target_version=self.store.version_to_replace(self.record, disk)
                    )
                self.record = move(self.record, Phase.KEPT, NOW)
            else:
                self.record = move(self.record, Phase.CLEANING, NOW)
        if self.record.phase is Phase.CLEANING:
            self.drop()
            self.record = move(self.record, Phase.DONE, NOW)

    def drop(self):
        """Remove the disks: each was saved as it is now, or is to be discarded."""
        for disk in self.record.disks:
            saved = self.record.disks[disk].saved_to
            assert saved or self.record.save_to(disk) == "", "a disk was dropped that was to stay"
            if saved:
                assert self.record.disks[disk].saved_sha256 == self.content[disk]
        self.content = {}

    def live(self, how, cause):
        """Start, and halt again."""
        self.start(how)
        self.halt(cause, requested=False)


LIVES = st.tuples(st.just("live"), st.sampled_from(("image", "last save", *PLACES)), CAUSES)
STEPS = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(("image", "last save", *PLACES))),
    st.tuples(st.just("halt"), CAUSES, st.booleans()),
    st.tuples(st.just("shutdown")),
    st.tuples(st.just("fail_to_save"), CAUSES),
    st.tuples(st.just("retry")),
    st.tuples(st.just("start_outside")),
)
CHANGES = st.tuples(st.just("modify"), st.sampled_from(DISKS), ENDS)
WORLD = st.one_of(
    st.tuples(st.integers(0, 1), LIVES),
    st.tuples(st.integers(0, 1), st.one_of(LIVES, CHANGES)),
    st.tuples(st.integers(0, 1), STEPS),
    st.tuples(st.just("people"), st.sampled_from((*PLACES, IMAGE))),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(ENDS, ENDS), min_size=2, max_size=2), st.lists(WORLD, min_size=6, max_size=30))
def test_no_life_takes_the_save_of_another(ends, steps):
    store = Store()
    store.put(IMAGE, "f" * 64, None)
    uuids = (f"6d6c7f0e-0000-4000-8000-00000000000{number}" for number in range(2))
    vms = [VM(store, uuid, targets) for uuid, targets in zip(uuids, ends, strict=True)]
    for actor, what in steps:
        if actor == "people":
            store.count += 1
            store.put(what, f"{store.count:064x}", None)
        else:
            verb, *arguments = what
            getattr(vms[actor], verb)(*arguments)
        for vm in vms:  # what is kept or on is all there
            assert vm.record.phase in (Phase.DONE, Phase.START_FAILED) or set(vm.content) == set(DISKS)
