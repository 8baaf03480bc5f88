"""A master as a process of its own: `python -m tests.functional.master.stand NAME SETTINGS.toml JOBS SOCKET`.

Its Salt is simulated. Each job is a line of the file JOBS: NAME, the name of the VM, the verb. SOCKET is the number of
the socket on which the master listens.
"""

import socket
import sys
from pathlib import Path

from master_service.__main__ import server
from master_service.api import create_app
from master_service.core import logging
from master_service.core.settings import load
from tests.functional.master.enrolled import enroll
from tests.functional.master.fakes import FakeSalt, FakeWorker


class RecordingSalt(FakeSalt):
    def __init__(self, name: str, jobs: Path):
        super().__init__(FakeWorker("w1"))
        self.name, self.file = name, jobs

    async def publish(self, workers, fun, kwarg, nonce):
        with self.file.open("a") as out:
            for action in kwarg["actions"]:
                out.write(f"{self.name} {action['params'].get('name', action['uuid'])} {action['verb']}\n")
        return await super().publish(workers, fun, kwarg, nonce)


def main() -> None:
    name, file, jobs, listening = sys.argv[1:]
    settings, _ = load(Path(file))
    logging.configure("info")
    salt = RecordingSalt(name, Path(jobs))
    enroll(settings, salt)
    app = create_app(settings, salt)
    # A connection that was idle for as long as this process was stopped is not closed just when it is used again.
    running = server(app, settings, timeout_keep_alive=600, timeout_graceful_shutdown=1)
    running.run([socket.socket(fileno=int(listening))])


if __name__ == "__main__":
    main()
