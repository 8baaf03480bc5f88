"""The table of steps. A step moves a VM from one phase to the next. After a crash anywhere in it, it is repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.state.record import Record
from worker_service.steps.halt import flatten_disks, note_halt
from worker_service.steps.install import give_up, note_ready
from worker_service.steps.remove import clean, destroy
from worker_service.steps.running import ask_shutdown, change_cd, note_start
from worker_service.steps.save import move_to_failed, save
from worker_service.steps.start import boot, build, fetch

STEPS: Final[Mapping[Step, Callable[[WorkerContext, Record], None]]] = {
    Step.FETCH: fetch,
    Step.BUILD: build,
    Step.BOOT: boot,
    Step.ASK_SHUTDOWN: ask_shutdown,
    Step.CHANGE_CD: change_cd,
    Step.NOTE_READY: note_ready,
    Step.GIVE_UP: give_up,
    Step.NOTE_HALT: note_halt,
    Step.NOTE_START: note_start,
    Step.FLATTEN: flatten_disks,
    Step.SAVE: save,
    Step.MOVE_TO_FAILED: move_to_failed,
    Step.CLEAN: clean,
    Step.DESTROY: destroy,
}
