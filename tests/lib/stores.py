"""Real image stores for a test, on loopback only: S3 that checks signatures, OpenSSH, connections that break."""

import contextlib
import hashlib
import json
import os
import pwd
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import moto.settings
from botocore.config import Config
from moto.core.authorization import ActionAuthenticatorMixin
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer
from werkzeug import Request, Response
from werkzeug.serving import make_server

from devstack.layout import bound
from tests.lib.acceptor import Acceptor, in_thread
from tests.lib.support import PATIENCE_S

ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class S3Server:
    """A store that speaks S3 and refuses requests without a signature of its only key."""

    bucket = "disks"

    def __init__(self) -> None:
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = 1_000_000
        ActionAuthenticatorMixin.request_count = 0
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        iam = self._client("iam", "setup", "setup")
        iam.create_user(UserName="worker")
        iam.put_user_policy(UserName="worker", PolicyName="all", PolicyDocument=json.dumps(ALL))
        made = iam.create_access_key(UserName="worker")["AccessKey"]
        self.access_key_id, self.secret = made["AccessKeyId"], made["SecretAccessKey"]
        self.client = self._client("s3", self.access_key_id, self.secret)
        self.client.create_bucket(Bucket=self.bucket)
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = 0

    def _client(self, service: str, key: str, secret: str) -> object:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def allow(self, *actions: str) -> None:
        """Let the worker do only these actions, such as `s3:PutObject`; without any, everything."""
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        statement = {"Effect": "Allow", "Action": list(actions) or "*", "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._client("iam", "setup", "setup").put_user_policy(
            UserName="worker", PolicyName="all", PolicyDocument=document
        )
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = 0

    def put(self, key: str, data: bytes) -> str:
        """Store an object and return its URI."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> bytes:
        """The stored objects."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self) -> list[str]:
        """Return the names of all objects."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def uploads(self) -> list[str]:
        """Return the names of all incomplete uploads."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def settings(self, folder: Path, *, endpoint: str = "", save: bool = True) -> dict:
        """Return the table of this store in a worker's settings, with its secret in a file."""
        secret = folder / "s3.secret"
        secret.touch(mode=0o600)
        secret.write_text(f"{self.secret}\n")
        return {
            "kind": "s3",
            "endpoint": endpoint or self.endpoint,
            "access_key_id": self.access_key_id,
            "secret_key_file": str(secret),
            "save": save,
        }

    def close(self) -> None:
        """Stop it and delete its objects."""
        self._server.stop()
        moto_api_backend.reset()
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")


class HttpStore:
    """A store with PUT, ETags and conditional requests. It requires a token."""

    token = "canary-http-5f2a"

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.port = self._server.server_port
        self.origin = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @Request.application
    def _serve(self, request: Request) -> Response:
        path, there = request.path, self.kept.get(request.path)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return Response(status=401)
        etag = f'"{hashlib.sha256(there).hexdigest()}"' if there is not None else None
        if request.method == "PUT":
            expected = request.headers.get("If-Match")
            if (request.headers.get("If-None-Match") and etag) or (expected and expected != etag):
                return Response(status=412)
            self.kept[path] = request.get_data()
            return Response(status=201)
        return Response(status=404) if there is None else Response(there, headers={"ETag": etag or ""})

    def settings(self, folder: Path) -> dict:
        """Return the table of this store in a worker's settings, with its secret in a file."""
        secret = folder / "http.token"
        secret.touch(mode=0o600)
        secret.write_text(f"{self.token}\n")
        return {"kind": "bearer", "token_file": str(secret)}

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()


class SftpServer:
    """OpenSSH with keys of its own. It accepts the user who runs the tests, with the one key that it knows.

    Args:
        folder: for its files.
        deny: names of requests that it refuses, as a server that lacks them.
    """

    def __init__(self, folder: Path, deny: str = "") -> None:
        self.folder = folder / "sftp"
        self.folder.mkdir()
        self._ssh = folder / "ssh"
        self._ssh.mkdir(mode=0o700)
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)  # OpenSSH's own, made by its unit file elsewhere
        self.key, self._host_key = self.make_key("id"), self.make_key("host")
        with bound() as free:
            self.port = free.getsockname()[1]
        self._config = self._ssh / "config"
        self._config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self._host_key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.key}.pub\nStrictModes no\nPermitRootLogin prohibit-password\n"
            f"PasswordAuthentication no\nSubsystem sftp internal-sftp{f' -P {deny}' if deny else ''}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def make_key(self, name: str) -> Path:
        """Make a private key, with its public key beside it."""
        path = self._ssh / name
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
        subprocess.run(argv, check=True)
        return path

    def start(self) -> None:
        """Start the server and wait until it listens."""
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self._config)]
        with (self._ssh / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"sshd does not listen: {(self._ssh / 'log').read_text()}")
            time.sleep(0.05)

    def uri(self, name: str, port: int = 0) -> str:
        """Return the URI of a file there."""
        return f"sftp://127.0.0.1:{port or self.port}{self.folder / name}"

    def store(self, port: int = 0) -> str:
        """Return the name of this store in a worker's settings."""
        return f"sftp://127.0.0.1:{port or self.port}{self.folder}"

    def known_hosts(self, port: int = 0, key: Path | None = None) -> Path:
        """Write a file with the server's key, or with another one."""
        path = self._ssh / "known_hosts"
        public = (key or self._host_key).with_suffix(".pub").read_text()
        path.write_text(f"[127.0.0.1]:{port or self.port} {public}")
        return path

    def settings(self, port: int = 0, *, save: bool = True) -> dict:
        """Return the table of this store in a worker's settings."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        known = self.known_hosts(port)
        return {"kind": "sftp", "user": user, "known_hosts": str(known), "key_file": str(self.key), "save": save}

    def close(self) -> None:
        """Stop it, with the sessions that a client has not ended."""
        assert self._process is not None
        sessions = _descendants(self._process.pid)
        self._process.terminate()
        self._process.wait()
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*children, *(each for child in children for each in _descendants(child))]
    return []


class Line:
    """A connection to a server that breaks, or corrupts bytes, where a test sets it.

    Attributes:
        cut_down: break off each connection after that many bytes from the server; None: never.
        cut_up: the same for bytes to the server.
        spoil_up: flip each byte at that place of what a connection sends to the server.
        connections: how many there have been.
    """

    def __init__(self, port: int) -> None:
        self.cut_down: int | None = None
        self.cut_up: int | None = None
        self.spoil_up: int | None = None
        self.connections = 0
        self._to = port
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.close = Acceptor(listener, self._join).close

    def _join(self, near: socket.socket) -> None:
        self.connections += 1
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        for pair in ((near, far, "up"), (far, near, "down")):
            in_thread(self._carry, *pair)

    def _carry(self, source: socket.socket, target: socket.socket, way: str) -> None:
        done = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                limit = self.cut_up if way == "up" else self.cut_down
                if limit is not None and done + len(chunk) > limit:
                    target.sendall(chunk[: max(0, limit - done)])
                    break
                if way == "up" and self.spoil_up is not None and done <= self.spoil_up < done + len(chunk):
                    spoilt = bytearray(chunk)
                    spoilt[self.spoil_up - done] ^= 0xFF
                    chunk = bytes(spoilt)
                target.sendall(chunk)
                done += len(chunk)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def line(port: int) -> Iterator[Line]:
    """Yield a breakable connection to a server for the time of a test."""
    made = Line(port)
    try:
        yield made
    finally:
        made.close()


def table(name: str, values: dict) -> str:
    """Write a store as lines of TOML. JSON's strings and booleans are valid TOML."""
    rows = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return f"[images.stores.{json.dumps(name)}]\n{rows}"
