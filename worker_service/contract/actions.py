"""The commands of an `apply` batch, and the replies to them.

On the wire an action is `{"verb": …, "uuid": …, "generation": …, "params": {…}}`. The verb decides the type of
`params`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, cast, get_args

import msgspec

from worker_service.contract.messages import Code, Spec


class Changes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters of `modify`. None leaves a value as it is; `""` discards a disk, or ejects the disc.

    `KEEP` for a `*_save_to` makes it absent again: the disk stays on its worker.
    """

    hda_save_to: str | None = None
    hdb_save_to: str | None = None
    cd_image: str | None = None


MODIFIABLE: Final = Changes.__struct_fields__
"""The parameters of `start` that `modify` can change."""


class TimeLimit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The parameters of a verb that can wait for its end. None: the worker's default."""

    timeout_s: float | None = None


class NoParams(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a verb that has none."""


ActionVerb = Literal["start", "modify", "suspend", "resume", "shutdown", "destroy", "save_retry"]


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="verb"):
    uuid: str
    generation: int
    attempt: int = 0
    """The number of this try, which the result repeats: so an answer to an earlier try cannot pass for it."""

    @property
    def verb(self) -> ActionVerb:
        return cast(ActionVerb, self.__struct_config__.tag)


class StartAction(_Command, frozen=True, kw_only=True, tag="start"):
    """Start a VM that may be here already. It carries the whole spec, so it can be sent twice."""

    params: Spec
    owner: str = ""
    """The account that the VM belongs to. Empty: as the worker has it; a new VM then belongs to the site itself."""
    origin: dict[str, str] = {}
    """Disk -> `URI#sha256=DIGEST` of its last save, from which it starts instead of the image in `params`."""


class ModifyAction(_Command, frozen=True, kw_only=True, tag="modify"):
    """Change parameters of a VM. Without any it only gives the worker a newer generation."""

    params: Changes = Changes()
    owner: str = ""
    """As in `start`."""


class SuspendAction(_Command, frozen=True, kw_only=True, tag="suspend"):
    """Pause a VM in memory."""

    params: NoParams = NoParams()


class ResumeAction(_Command, frozen=True, kw_only=True, tag="resume"):
    """Let a suspended VM run on."""

    params: NoParams = NoParams()


class ShutdownAction(_Command, frozen=True, kw_only=True, tag="shutdown"):
    """Ask the guest to shut down; then its disks are saved."""

    params: TimeLimit = TimeLimit()


class DestroyAction(_Command, frozen=True, kw_only=True, tag="destroy"):
    """Power off and discard a VM with all its disks."""

    params: TimeLimit = TimeLimit()


class SaveRetryAction(_Command, frozen=True, kw_only=True, tag="save_retry"):
    """Try again to save the disks that lie in failed_to_save."""

    params: NoParams = NoParams()


Action = (
    StartAction | ModifyAction | SuspendAction | ResumeAction | ShutdownAction | DestroyAction | SaveRetryAction
)  # fmt: skip
"""One command of an `apply` batch."""

ACTIONS: Final[Mapping[ActionVerb, Callable[..., Action]]] = {
    shape.__struct_config__.tag: shape for shape in get_args(Action)
}
"""The type of the action of each verb."""


class ActionResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reply to one action, and to each single verb. `code` is the reason if `success` is false."""

    success: bool
    message: str
    uuid: str | None = None
    verb: str | None = None
    generation: int | None = None
    attempt: int = 0
    """These four are the action's own."""
    code: Code | None = None


class ApplyReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `apply`: one result per action, in order. `success` is true if each one succeeded.

    `code` is that of the first failure, so a batch of one answers as its verb does.
    """

    success: bool
    message: str
    results: tuple[ActionResult, ...]
    code: Code | None = None
