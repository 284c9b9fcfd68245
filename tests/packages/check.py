"""Run by scripts/check-packages in the repository's root: prints what is wrong, and how much was checked."""

import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

CHART = "charts/nats-webhook-relay"
FEATURE = "devcontainer/src/nats-webhook-relay"
KUBERNETES = "1.37"
checked, faults = 0, []


def check(what, is_right, why=""):
    global checked
    checked += 1
    if not is_right:
        faults.append(f"{what}: {why}" if why else what)


def run(what, *command):
    ran = subprocess.run(command, capture_output=True, text=True)
    check(what, ran.returncode == 0, ran.stdout + ran.stderr)


# --- the chart

RELAY = {
    "config": {
        "WEBHOOK_DESTINATION": "http://frontend:3000/",
        "NATS_HOST": "nats://nats:4222",
        "NATS_SUBJECT_PREFIX": "cms.cache",
        "NATS_RELAYED_SUBJECT_PREFIX": "relayed.cache",
    }
}


def values(**more):
    merged = copy.deepcopy(RELAY)
    for name, value in more.items():
        if name == "config":
            merged["config"].update(value)
        else:
            merged[name] = value
    return merged


def rendered(given, name="relay"):
    """The objects by kind; each one must be what Kubernetes takes."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(given)
        texts = chart.render(values=given, name=name)
    objects = {}
    for path, text in texts.items():
        for it in yaml.safe_load_all(text) if path.endswith(".yaml") else []:
            if it:
                objects[it["kind"]] = it
                # Not Kubernetes' own.
                if it["kind"] != "ServiceMonitor":
                    try:
                        kubernetes_validate.validate(it, KUBERNETES, strict=True)
                        check(path, True)
                    except kubernetes_validate.ValidationError as error:
                        check(path, False, str(error))
    return objects


def pod(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects):
    return pod(objects)["containers"][0]


def environment(objects):
    return {it["name"]: it.get("value") for it in container(objects)["env"]}


def refused(what, given, part):
    try:
        rendered(given)
        check(what, False, "it was accepted")
    except HelmError as error:
        check(what, part in str(error), str(error))


def chart():
    report = lint(CHART, values=RELAY, strict=True)
    for message in report["messages"]:
        # 1: that there is no icon.
        check(f"helm lint {message['path']}", message["severity"] <= 1, message["error"])
    check("helm lint", not report["errors"], str(report["errors"]))

    plain = rendered(RELAY)
    check("the kinds of objects", sorted(plain) == ["Deployment", "Service", "ServiceAccount"], str(sorted(plain)))
    check(
        "the variables",
        environment(plain)
        == RELAY["config"] | {"HTTP_LISTEN": "0.0.0.0:9090", "PLUGIN_CACHE": "/var/cache/nats-webhook-relay/compiled"},
        str(environment(plain)),
    )
    check("the port", container(plain)["ports"] == [{"name": "http", "containerPort": 9090}])
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        check(probe, container(plain)[probe]["httpGet"] == {"path": path, "port": "http"})
    labels = plain["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in (
        ("Service", plain["Service"]["spec"]["selector"]),
        ("Deployment", plain["Deployment"]["spec"]["selector"]["matchLabels"]),
    ):
        check(f"the selector of the {kind}", selector.items() <= labels.items(), str(selector))
    check("grace", pod(plain)["terminationGracePeriodSeconds"] > 25)

    # What the pod security standard "restricted" asks for.
    context, own = pod(plain)["securityContext"], container(plain)["securityContext"]
    check("runAsNonRoot", context["runAsNonRoot"] is True and context["runAsUser"] == 65534)
    check("seccompProfile", context["seccompProfile"] == {"type": "RuntimeDefault"})
    check("allowPrivilegeEscalation", own["allowPrivilegeEscalation"] is False)
    check("capabilities", own["capabilities"] == {"drop": ["ALL"]})
    check("readOnlyRootFilesystem", own["readOnlyRootFilesystem"] is True)
    for source in ("hostPath", "hostNetwork", "hostPID", "hostIPC"):
        check(source, source not in json.dumps(plain))

    full = rendered(
        values(
            config={
                "NATS_STREAM": "CMS",
                "NATS_PENDING_MESSAGES": 1000000,
                "NATS_TLS_FIRST": True,
                "HTTP_LISTEN": "[::]:9191",
                "PLUGIN_NEXTJS_TAGS_TAGS": '{entity}:"{id}"',
            },
            replicas=3,
            existingSecret="relay",
            secretFiles={
                "NATS_CREDS": {"secret": "nats", "key": "relay.creds"},
                "WEBHOOK_SECRET": {"secret": "frontend", "key": "secret"},
                "PLUGIN_NEXTJS_TAGS_TOKEN": {"secret": "frontend", "key": "token"},
            },
            plugins={"volume": {"image": {"reference": "example/plugins:1"}}, "files": ["a.wasm", "more/b.wasm"]},
            image={"digest": "sha256:" + "0" * 64},
            serviceMonitor={"enabled": True, "labels": {"release": "prometheus"}},
            podDisruptionBudget={"enabled": True},
            extraEnv=[{"name": "NATS_NKEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
            extraVolumes=[{"name": "extra", "emptyDir": {}}],
            extraVolumeMounts=[{"name": "extra", "mountPath": "/extra"}],
            podAnnotations={"a": "b"},
            podLabels={"c": "d"},
            nodeSelector={"kubernetes.io/arch": "arm64"},
            tolerations=[{"key": "a", "operator": "Exists"}],
            affinity={"podAntiAffinity": {}},
            topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}],
            priorityClassName="high",
            imagePullSecrets=[{"name": "pull"}],
        )
    )
    variables = environment(full)
    for name, value in {
        "NATS_PENDING_MESSAGES": "1000000",
        "NATS_TLS_FIRST": "true",
        "PLUGIN_NEXTJS_TAGS_TAGS": '{entity}:"{id}"',
        "PLUGINS": "/plugins/a.wasm:/plugins/more/b.wasm",
        "NATS_CREDS": "/run/secrets/nats-webhook-relay/NATS_CREDS",
        "WEBHOOK_SECRET_FILE": "/run/secrets/nats-webhook-relay/WEBHOOK_SECRET",
        "PLUGIN_NEXTJS_TAGS_TOKEN_FILE": "/run/secrets/nats-webhook-relay/PLUGIN_NEXTJS_TAGS_TOKEN",
    }.items():
        check(name, variables.get(name) == value, str(variables.get(name)))
    check("existingSecret", container(full)["envFrom"] == [{"secretRef": {"name": "relay"}}])
    check("the digest", container(full)["image"].endswith("@sha256:" + "0" * 64))
    check("the port of HTTP_LISTEN", container(full)["ports"][0]["containerPort"] == 9191)
    volumes = {it["name"]: it for it in pod(full)["volumes"]}
    mounts = {it["name"]: it["mountPath"] for it in container(full)["volumeMounts"]}
    check("a mount for each volume", volumes.keys() == mounts.keys(), f"{volumes} {mounts}")
    check("plugins", volumes["plugins"]["image"] == {"reference": "example/plugins:1"} and mounts["plugins"] == "/plugins")
    files = [it["path"] for source in volumes["secrets"]["projected"]["sources"] for it in source["secret"]["items"]]
    check("the files of secrets", sorted(files) == ["NATS_CREDS", "PLUGIN_NEXTJS_TAGS_TOKEN", "WEBHOOK_SECRET"], str(files))
    monitor = full["ServiceMonitor"]["spec"]
    check("the ServiceMonitor's port", monitor["endpoints"][0]["port"] in [it["name"] for it in full["Service"]["spec"]["ports"]])
    check(
        "the ServiceMonitor's selector",
        monitor["selector"]["matchLabels"].items() <= full["Service"]["metadata"]["labels"].items(),
    )
    check("the budget", full["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1)

    for volume in ({"configMap": {"name": "plugins"}}, {"persistentVolumeClaim": {"claimName": "plugins"}}):
        some = rendered(values(plugins={"volume": volume}))
        check(f"plugins from {volume}", environment(some)["PLUGINS"] == "/plugins")

    gateway = rendered({"command": "gateway", "config": {"NATS_HOST": "nats://a", "GATEWAY_SUBJECT": "a"}, "replicas": 2})
    check("gateway", container(gateway)["args"] == ["gateway"] and environment(gateway)["GATEWAY_LISTEN"] == "0.0.0.0:8080")
    ports = {it["name"]: (it["port"], it["targetPort"]) for it in gateway["Service"]["spec"]["ports"]}
    check("the gateway's port", ports["gateway"] == (80, "gateway"), str(ports))

    refused("a misspelt variable", values(config={"WEBHOOK_TIMEOUTS": "1s"}), "WEBHOOK_TIMEOUTS")
    refused("a misspelt value", values(replica=1), "replica")
    refused("a file for what is no secret", values(secretFiles={"MAX_IN_FLIGHT": {"secret": "a", "key": "b"}}), "MAX_IN_FLIGHT")
    refused("two replicas that would both relay", values(replicas=2), "NATS_STREAM")
    refused("a variable twice", values(secretFiles={"NATS_HOST": {"secret": "a", "key": "b"}}), "NATS_HOST")
    refused("no port", values(config={"HTTP_LISTEN": ""}), "HTTP_LISTEN")
    refused("plugins of the gateway", values(command="gateway", plugins={"volume": {"emptyDir": {}}}), "gateway")


# --- containers

def containers():
    for dockerfile in ["Dockerfile", "examples/nextjs/Dockerfile"]:
        run(dockerfile, "hadolint", dockerfile)
    run("compose.yaml", "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "examples/compose/compose.yaml")
    compose = yaml.safe_load(pathlib.Path("examples/compose/compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = pathlib.Path("examples/compose", source).exists() if source[0] == "." else source in compose["volumes"]
            check(f"{name}: {source}", exists, "there is no such file or volume")
        for other in service.get("depends_on", {}):
            check(f"{name} depends on {other}", other in compose["services"])
    with tempfile.TemporaryDirectory() as folder:
        # nats-server opens the folder even where it only reads the file.
        settings = pathlib.Path("examples/compose/nats.conf").read_text().replace("/data", folder)
        path = pathlib.Path(folder, "nats.conf")
        path.write_text(settings)
        run("nats.conf", os.environ["NATS_SERVER"], "-t", "-c", str(path))

    # Both images have the same layout: the parts of the Dockerfile are in nix/container.nix.
    dockerfile, container = pathlib.Path("Dockerfile").read_text(), pathlib.Path("nix/container.nix").read_text()
    parts = [
        "/bin/nats-webhook-relay",
        "/etc/ssl/certs/ca-bundle.crt",
        "/plugins",
        "/var/cache/nats-webhook-relay",
        "65534",
        "HTTP_LISTEN=127.0.0.1:9090",
        "healthcheck",
        "org.opencontainers.image.source",
    ]
    for part in parts:
        in_nix = part.removeprefix("/") in container
        check(f"{part} of the images", part in dockerfile and in_nix, "it is not in both Dockerfile and nix/container.nix")


# --- scripts and workflows

def scripts():
    shell = [path for path in pathlib.Path("scripts").iterdir() if path.read_text().startswith(("#!/bin/sh", "#!/usr/bin/env bash"))]
    # Scripts within workflows are given to shellcheck too.
    workflows = sorted(pathlib.Path(".github/workflows").glob("*.yml"))
    run("actionlint", "actionlint", *map(str, workflows))
    for workflow in workflows:
        text = workflow.read_text()
        for action in re.findall(r"uses: (.+)$", text, re.MULTILINE):
            check(f"{workflow}: {action}", re.fullmatch(r"\S+@[0-9a-f]{40} # v[0-9.]+", action), "it is not named by its commit and version")
        check(f"{workflow}: permissions", re.search(r"^permissions:", text, re.MULTILINE))
    shell += pathlib.Path("packaging/debian").glob("post*")
    run("shellcheck", "shellcheck", "--severity=warning", ".ci/run", f"{FEATURE}/install.sh", *map(str, sorted(shell)))


# --- versions, and the devcontainer feature

def versions():
    manifest = pathlib.Path("Cargo.toml").read_text()
    version = re.search(r'^version = "(.*)"', manifest, re.MULTILINE)[1]
    about = yaml.safe_load(pathlib.Path(CHART, "Chart.yaml").read_text())
    check("the chart's version", about["version"] == about["appVersion"] == version, str(about))
    feature = json.loads(pathlib.Path(FEATURE, "devcontainer-feature.json").read_text())
    check("the feature's version", feature["version"] == feature["options"]["version"]["default"] == version)
    check("the feature's folder", feature["id"] == pathlib.Path(FEATURE).name)
    check("the version of the Dockerfile", f"ARG VERSION={version}\n" in pathlib.Path("Dockerfile").read_text())
    with tempfile.TemporaryDirectory() as folder:
        parent = str(pathlib.Path(FEATURE).parent)
        run("the feature", "devcontainer", "features", "package", parent, "--output-folder", f"{folder}/packaged")


chart()
containers()
scripts()
versions()
for fault in faults:
    print(f"scripts/check-packages: {fault}", file=sys.stderr)
print(f"scripts/check-packages: {checked - len(faults)} passed, {len(faults)} failed")
sys.exit(bool(faults))
