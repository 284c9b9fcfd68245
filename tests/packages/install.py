"""Run by scripts/check-install in the repository's root, as root: installs a program in several ways and uses it."""

import http.server
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
USER = 65534
LIMIT = 120
MOST_BYTES = 40_000_000
passed = 0


def check(what, is_right, why=""):
    global passed
    if not is_right:
        sys.exit(f"scripts/check-install: FAILED: {what}: {why}")
    passed += 1


def run(*command, **more):
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)
    check(" ".join(map(str, command)), ran.returncode == 0, ran.stdout + ran.stderr)
    return ran.stdout


def eventually(what, condition):
    end = time.monotonic() + LIMIT
    while not condition():
        check(what, time.monotonic() < end, "it did not happen in time")
        time.sleep(0.05)


class Nats:
    """A nats-server, and a connection to it that speaks as much of the protocol as is needed."""

    def __init__(self, folder):
        command = [os.environ["NATS_SERVER"], "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually("nats-server starts", lambda: any(pathlib.Path(folder).glob("*.ports")))
        ports = next(pathlib.Path(folder).glob("*.ports"))
        eventually("nats-server writes its ports", lambda: ports.read_text().endswith("}"))
        self.url = json.loads(ports.read_text())["nats"][0]
        host, port = self.url.removeprefix("nats://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LIMIT)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self.socket.sendall(b'CONNECT {"verbose":false}\r\n')

    def listen(self, subject):
        self.socket.sendall(f"SUB {subject} 1\r\nPING\r\n".encode())
        while self.lines.readline() != b"PONG\r\n":
            pass

    def publish(self, subject, payload):
        self.socket.sendall(f"PUB {subject} {len(payload)}\r\n{payload}\r\n".encode())

    def subject(self):
        """That of the next message."""
        while True:
            line = self.lines.readline()
            if line.startswith((b"MSG", b"HMSG")):
                return line.split()[1].decode()

    def end(self):
        self.server.kill()
        self.server.wait()


class Endpoint(http.server.BaseHTTPRequestHandler):
    bodies = []

    def do_POST(self):
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


# --- the image

def assemble(folder):
    """What the first stage of the Dockerfile leaves, from a program that is built already."""
    image = folder / "context" / "image"
    (image / "bin").mkdir(parents=True)
    shutil.copy(PROGRAM, image / "bin/nats-webhook-relay")
    run("strip", image / "bin/nats-webhook-relay")
    # Nothing for a static program.
    libraries = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True).stdout.split()
    for library in (it for it in libraries if it.startswith("/")):
        target = image / library.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    certificates = image / "etc/ssl/certs/ca-bundle.crt"
    certificates.parent.mkdir(parents=True)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", certificates)
    (image / "plugins").mkdir()
    cache = image / "var/cache/nats-webhook-relay"
    cache.mkdir(parents=True, mode=0o755)
    cache.chmod(0o700)
    os.chown(cache, USER, USER)
    return image.parent


def built(folder):
    """The root file system of the image, and its configuration."""
    context = assemble(folder)
    dockerfile = pathlib.Path("Dockerfile").read_text()
    last = folder / "Dockerfile"
    last.write_text(dockerfile[dockerfile.index("\nFROM scratch") + 1 :])
    storage = ["--storage-driver", "vfs", "--root", folder / "storage", "--runroot", folder / "run"]
    run("buildah", *storage, "build", "--build-context", f"build={context}", "--format", "docker", "--tag", "relay", "--file", last, folder / "context")
    settings = json.loads(run("buildah", *storage, "inspect", "--type", "image", "relay"))["Docker"]["config"]
    run("buildah", *storage, "push", "relay", f"oci:{folder}/oci:relay")
    size = sum(it.stat().st_size for it in (folder / "oci/blobs").rglob("*") if it.is_file())
    check("the size of the image", size <= MOST_BYTES, f"{size} bytes")
    print(f"the image has {size / 1e6:.1f} MB, compressed")
    run("umoci", "unpack", "--image", f"{folder}/oci:relay", folder / "bundle")
    return folder / "bundle/rootfs", settings


def image(folder):
    root, settings = built(folder)
    check("the user", settings["User"] == "65534:65534", str(settings))
    check("the health check", settings["Healthcheck"]["Test"] == ["CMD", "/bin/nats-webhook-relay", "healthcheck"], str(settings))
    check("the signal", settings.get("StopSignal", "SIGTERM") == "SIGTERM", str(settings))
    for label in ("title", "description", "version", "licenses", "source"):
        check(label, settings["Labels"].get(f"org.opencontainers.image.{label}"), str(settings))

    volume = folder / "volume"
    shutil.copytree(root / "var/cache/nats-webhook-relay", volume)
    os.chown(volume, USER, USER)
    volume.chmod(0o700)
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    shutil.copy(os.environ["PLUGIN"], plugins / "drupal-path.wasm")
    (plugins / "drupal-path.wasm").chmod(0o644)

    nats = Nats(tempfile.mkdtemp(dir=folder))
    endpoint = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    variables = dict(it.split("=", 1) for it in settings["Env"]) | {
        "WEBHOOK_DESTINATION": f"http://127.0.0.1:{endpoint.server_port}/",
        "NATS_HOST": nats.url,
        "NATS_SUBJECT_PREFIX": "cms.cache",
        "NATS_RELAYED_SUBJECT_PREFIX": "relayed.cache",
        "PLUGINS": "/plugins",
        "PLUGIN_DRUPAL_PATH_SECRET": "s3cret",
        "HTTP_LISTEN": listen,
    }
    # As a container engine does it, without networks of its own: a read-only root, the volumes, no privileges, and a
    # namespace of processes in which the program is the first.
    enter = f"""
        set -eu
        mount --bind "{root}" "{root}"
        mount -o remount,bind,ro "{root}"
        mount --bind "{volume}" "{root}/var/cache/nats-webhook-relay"
        mount --bind "{plugins}" "{root}/plugins"
        ! touch "{root}/written" 2>/dev/null
        exec setpriv --no-new-privs chroot --userspec={USER}:{USER} "{root}" {' '.join(settings['Entrypoint'])} "$@"
    """

    def start(*arguments, **more):
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, "sh", *arguments]
        return subprocess.Popen(command, env=variables | {"PATH": os.environ["PATH"]}, stderr=subprocess.PIPE, text=True, **more)

    nats.listen("relayed.cache.>")
    relay = start()
    lines, ready = [], threading.Event()

    def read():
        for line in relay.stderr:
            lines.append(line)
            if " ready " in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    check("the relay is ready", ready.wait(LIMIT) and relay.poll() is None, "".join(lines))
    nats.publish("cms.cache.article.42", pathlib.Path("plugins/drupal-path/event.json").read_text())
    check("the message is relayed", nats.subject() == "relayed.cache.article.42")
    check("the plugin shapes the call", "s3cret" in "".join(Endpoint.bodies), str(Endpoint.bodies))
    check("the plugin is cached in the volume", any(it.is_file() for it in volume.rglob("*")))
    asked = start("healthcheck")
    _, said = asked.communicate(timeout=LIMIT)
    check("the health check", asked.returncode == 0, said)
    # unshare's child is the program.
    children = pathlib.Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    check("it stops on SIGTERM", relay.wait(LIMIT) == 0, "".join(lines))
    asked = start("healthcheck")
    _, said = asked.communicate(timeout=LIMIT)
    check("the health check of a relay that has stopped", asked.returncode == 1, said)
    endpoint.shutdown()
    nats.end()


# --- packages

def inside(folder, script):
    """Runs a script in a copy of this machine's files, which is gone afterwards."""
    overlay = f"""
        set -eu
        mount -t tmpfs tmpfs "{folder}"
        mkdir "{folder}/upper" "{folder}/work" "{folder}/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir={folder}/upper,workdir={folder}/work" "{folder}/root"
        mount -t proc proc "{folder}/root/proc"
        mount --bind /dev "{folder}/root/dev"
        mount -t tmpfs tmpfs "{folder}/root/run"
        exec chroot "{folder}/root" sh -euxc '{script}'
    """
    return run("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", overlay, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


def debian(folder):
    target = f"{platform.machine()}-unknown-linux-gnu"
    package = pathlib.Path(run("scripts/package", "debian", target, PROGRAM).split()[-1]).resolve()
    found = run("lintian", "--fail-on", "error,warning", "--info", package, env=os.environ | {"LC_ALL": "C.UTF-8"})
    check("lintian", not found, found)
    copy = folder / "relay.deb"
    shutil.copy(package, copy)
    inside_copy = "/var/tmp/nats-webhook-relay-check.deb"
    mount = folder / "overlay"
    mount.mkdir()
    shutil.copy(package, inside_copy)
    try:
        inside(
            mount,
            f"""
            dpkg --install {inside_copy}
            getent passwd nats-webhook-relay
            nats-webhook-relay --version
            test -e /usr/share/man/man1/nats-webhook-relay.1.gz
            bash -c ". /usr/share/bash-completion/completions/nats-webhook-relay"
            test "$(stat -c %a /etc/default/nats-webhook-relay)" = 600
            said=$(systemd-analyze verify --man=no /usr/lib/systemd/system/nats-webhook-relay.service 2>&1)
            test -z "$said" || {{ echo "$said"; exit 1; }}
            systemd-analyze security --no-pager --offline=yes --threshold=20 /usr/lib/systemd/system/nats-webhook-relay.service
            echo MAX_IN_FLIGHT=1 >>/etc/default/nats-webhook-relay
            dpkg --install {inside_copy}
            grep -q MAX_IN_FLIGHT /etc/default/nats-webhook-relay
            dpkg --remove nats-webhook-relay
            test -e /etc/default/nats-webhook-relay
            mkdir -p /var/cache/nats-webhook-relay
            dpkg --purge nats-webhook-relay
            rest=$(find /etc /usr /lib/systemd /var/cache -xdev -name "*nats-webhook-relay*" -cnewer {inside_copy} | grep -v -e /var/lib/dpkg || :)
            test -z "$rest" || {{ echo "these remain: $rest"; exit 1; }}
            """,
        )
    finally:
        os.remove(inside_copy)


def feature(folder):
    target = f"{platform.machine()}-unknown-linux-musl"
    archive = pathlib.Path(run("scripts/package", "archive", target, PROGRAM).strip())
    downloads, prefix = folder / "downloads", folder / "prefix"
    downloads.mkdir()
    shutil.copy(archive, downloads)
    archive.unlink()
    sums = downloads / "SHA256SUMS"
    sums.write_text(run("sha256sum", archive.name, cwd=downloads))
    script = "devcontainer/src/nats-webhook-relay/install.sh"
    metadata = json.loads(pathlib.Path(script).with_name("devcontainer-feature.json").read_text())
    options = {name.upper(): str(it["default"]).lower() for name, it in metadata["options"].items()}
    environment = os.environ | options | {"DOWNLOADS": f"file://{downloads}", "PREFIX": str(prefix)}
    run("sh", script, env=environment)
    version = run(prefix / "bin/nats-webhook-relay", "--version")
    check("the version", version.split()[-1] == metadata["version"], version)
    check("the start", f"/usr/local{'/share/nats-webhook-relay/start'}" == metadata["postStartCommand"])
    check("the start", os.access(prefix / "share/nats-webhook-relay/start", os.X_OK))
    run("sh", "-n", prefix / "share/nats-webhook-relay/start")
    sums.write_text("0" * 64 + sums.read_text()[64:])
    refused = subprocess.run(["sh", script], env=environment, capture_output=True)
    check("an archive with another checksum is refused", refused.returncode != 0)


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    # The user of the image has to get through.
    folder.chmod(0o755)
    for way in (feature, image, debian):
        (folder / way.__name__).mkdir()
        way(folder / way.__name__)
print(f"scripts/check-install: {passed} passed, 0 failed")
