"""Salt's execution modules in this process, loaded as the minion loads them: no master needs to be up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def load(minion_config: Path) -> Mapping[str, Callable[..., Any]]:
    """The functions of `salt.loader.minion_mods`; slow once (0.7 s), then 40 µs a call. Raises FileNotFoundError."""
    import salt.config  # noqa: PLC0415 - half a second that `--help` does not pay
    import salt.loader  # noqa: PLC0415

    # As for Salt itself, what lies in minion.d is enough.
    if not minion_config.exists() and not any(minion_config.parent.glob("minion.d/*.conf")):
        raise FileNotFoundError(
            f"The minion's configuration {minion_config} does not exist. "
            "Name it as facade.minion_config in the worker's settings."
        )
    opts = salt.config.minion_config(str(minion_config))
    opts["file_client"] = "local"  # nothing here may wait for a master
    # The grains of the host are what makes loading slow, and no verb needs them.
    opts["grains"] = {}
    modules: Mapping[str, Callable[..., Any]] = salt.loader.minion_mods(opts)
    if "vmachines.version" not in modules:
        missing = getattr(modules, "missing_modules", {}).get("vmachines", "not in module_dirs")
        raise FileNotFoundError(f"Salt finds no module vmachines with {minion_config}: {missing}.")
    return modules
