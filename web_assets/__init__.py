"""JavaScript of other projects that the pages of both services load, under its own licences.

`devstack` fetches it from npm at pinned digests; git ignores it. A wheel that is built afterwards contains it.
"""

from pathlib import Path
from typing import Final

NOVNC: Final = Path(__file__).parent / "novnc"
"""noVNC: a VNC client that shows a VM's console in the browser."""
