"""The worker API as a real server on loopback, with Salt's loader behind it."""

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2

from devstack.layout import Ports
from tests.lib.support import PATIENCE_S, Site
from worker_service.api.__main__ import require_protection, server
from worker_service.api.app import create_app
from worker_service.api.auth import TokenFile
from worker_service.core.settings import ApiSettings

REPO = Path(__file__).parents[3]

get, post, delete = (partial(httpx2.request, method, timeout=PATIENCE_S) for method in ("GET", "POST", "DELETE"))
"""The clients of httpx2 have five seconds, which are too few for the API on a busy machine."""


def write_minion(site: Site) -> Path:
    """Write a minion's configuration for the site's worker."""
    folder = site.folder / "salt"
    folder.mkdir(exist_ok=True)
    (folder / "minion").write_text(
        f"id: w1\nroot_dir: {folder}\nmodule_dirs: [{REPO}/states]\nsaltern: {{settings: {site.settings}}}\n"
        "file_client: local\nlog_file: salt.log\n"
    )
    return folder / "minion"


def write_tokens(site: Site) -> Path:
    """Tokens `all`, `reader` (read) and `screens` (read, console)."""
    lines = {"all": "read,operate,console me", "reader": "read looker", "screens": "read,console viewer"}
    path = site.folder / "tokens"
    path.write_text(
        "# comment\n\n" + "".join(f"{hashlib.sha256(t.encode()).hexdigest()} {of}\n" for t, of in lines.items())
    )
    return path


@contextmanager
def process(folder: Path, libvirt_uri: str, libvirt_timeout_s: float = 600.0, **settings: object) -> Iterator[str]:
    """The worker API as a process over another libvirt; yields its URL. Salt has one loader in a process."""
    site, port = Site(folder, libvirt_uri=libvirt_uri, libvirt_timeout_s=libvirt_timeout_s), Ports.free().worker
    values = {
        "port": port,
        "tokens_file": str(write_tokens(site)),
        "minion_config": str(write_minion(site)),
        **settings,
    }
    with site.settings.open("a") as file:
        file.write("[api]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    argv = [sys.executable, "-m", "worker_service.api", "--settings", str(site.settings)]
    log = folder / "worker-api.log"
    with log.open("wb") as out, subprocess.Popen(argv, cwd=REPO, stdout=out, stderr=out) as running:
        try:
            while b"Uvicorn running" not in log.read_bytes():
                assert running.poll() is None, log.read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()


@contextmanager
def serving(site: Site, modules, **settings: object) -> Iterator[str]:
    """Serve the worker API of a site by uvicorn, as `python -m worker_service.api` does; yields its URL."""
    held = socket.create_server(("127.0.0.1", 0))
    settings = {"tokens_file": write_tokens(site), **settings}
    worker_api = ApiSettings(port=held.getsockname()[1], **settings)
    tokens = TokenFile(worker_api.tokens_file)
    require_protection(worker_api, tokens.tokens())
    running = server(create_app(worker_api, modules, tokens, site.worker), worker_api)
    thread = threading.Thread(target=running.run, args=([held],))
    thread.start()
    try:
        while not running.started and thread.is_alive():
            thread.join(0.02)
        yield f"http://127.0.0.1:{worker_api.port}"
    finally:
        running.should_exit = True
        thread.join()
        held.close()
