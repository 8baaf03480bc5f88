"""A real PostgreSQL for tests: a cluster in a temporary folder, reached over a unix socket alone."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

# The tests delete all of it, so no write has to reach the disk.
_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB", "max_connections=60")


class Cluster:
    """One server. `url(name)` is a database of it; `make(name, template)` makes one."""

    def __init__(self) -> None:
        # As an unprivileged user: PostgreSQL refuses to run as root. A short path, for the socket.
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.folder = Path(tempfile.mkdtemp(prefix="saltern-pg-", dir="/var/tmp"))
        os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._names = itertools.count()
        self._server: subprocess.Popen[bytes] | None = None
        self._as = {"user": self._user.pw_name, "group": self._user.pw_gid, "extra_groups": []}
        if os.geteuid() != 0:
            self._as = {}
        initdb = [self._binaries / "initdb", "-D", self.folder / "data", "-A", "trust", "-U", "saltern", "-N"]
        locale = ["-E", "UTF8", "--no-locale"]
        subprocess.run([*initdb, *locale], check=True, capture_output=True, cwd=self.folder, **self._as)
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        words = [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="]
        options = [word for setting in _FAST for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen([*words, *options], stdout=log, stderr=log, cwd=self.folder, **self._as)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("SELECT 1")
            except psycopg.OperationalError:
                assert self._server.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop the server and cut off its connections."""
        self._server.send_signal(signal.SIGINT)  # its own word for "fast"
        self._server.wait(30)

    def close(self) -> None:
        """Stop it and remove everything."""
        self.stop()
        shutil.rmtree(self.folder)

    def run(self, statement: str) -> None:
        """Run one statement outside of any transaction."""
        with psycopg.connect(f"postgresql://saltern@/postgres?host={self.folder}", autocommit=True) as connection:
            connection.execute(statement)

    def url(self, name: str) -> str:
        """Return the URL of one database."""
        return f"postgresql://saltern@/{name}?host={self.folder}"

    def make(self, template: str = "template0", tablespace: str = "pg_default", name: str = "") -> str:
        """Make a database as a copy of another one without connections, and return its name."""
        name = name or f"test{next(self._names)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} TABLESPACE {tablespace}")
        return name

    def make_tablespace(self, folder: Path) -> str:
        """Make a tablespace in an empty folder, and return its name. The caller drops it."""
        os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        name = f"space{next(self._names)}"
        self.run(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
        return name

    def drop(self, name: str) -> None:
        """Remove a database and cut off its connections."""
        self.run(f"DROP DATABASE {name} WITH (FORCE)")
