"""Checks rendered manifests against Kubernetes's own schemas and the rules that Rhone's pods keep.

Called as `manifests.py FOLDER`, with one OVERLAY.yaml for each overlay in FOLDER. Problems go to stderr and make it fail; on
stdout it prints what each pod would be configured with, as JSON, for `rhone check`.
"""

import functools
import json
import pathlib
import sys

import kubernetes_validate.utils as schemas
import yaml

VERSIONS = ("1.29", "1.37")
# No schema is published for these: only the fields that their operators insist on are looked at.
CUSTOM = {
    "PodMonitor": ("monitoring.coreos.com/v1", ["selector", "podMetricsEndpoints"]),
    "PrometheusRule": ("monitoring.coreos.com/v1", ["groups"]),
    "Application": ("argoproj.io/v1alpha1", ["project", "source", "destination"]),
}
# Read for each object again otherwise, megabytes at a time.
schemas.schema_contents = functools.lru_cache(maxsize=None)(schemas.schema_contents)
problems = []


def complain(where, what):
    problems.append(f"{where}: {what}")


def schema(where, thing):
    if thing["kind"] in CUSTOM:
        version, fields = CUSTOM[thing["kind"]]
        if thing["apiVersion"] != version:
            complain(where, f"apiVersion is not {version}")
        for field in fields:
            if not thing["spec"].get(field):
                complain(where, f"spec.{field} is missing")
        return
    for version in VERSIONS:
        try:
            schemas.validate(thing, version, strict=True)
        except schemas.ValidationError as error:
            complain(where, f"{version}: {'.'.join(map(str, error.path))}: {error.message}")
        except schemas.SchemaNotFoundError as error:
            complain(where, error.message)


def pod_rules(where, workload):
    spec = workload["spec"]["template"]["spec"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selector = workload["spec"]["selector"]["matchLabels"]
    if not selector.items() <= labels.items():
        complain(where, "its selector does not match its pods")
    if spec.get("automountServiceAccountToken") is not False:
        complain(where, "its pods get a service account token")
    if not spec["securityContext"].get("runAsNonRoot"):
        complain(where, "its pods may run as root")
    mounted = {volume["name"] for volume in spec["volumes"]}
    mounted |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    for container in spec.get("initContainers", []) + spec["containers"]:
        inside = f"{where}: {container['name']}"
        security = container["securityContext"]
        if not security.get("readOnlyRootFilesystem") or security.get("allowPrivilegeEscalation") is not False:
            complain(inside, "its root file system can be written, or it can gain privileges")
        if security.get("capabilities") != {"drop": ["ALL"]}:
            complain(inside, "it keeps capabilities")
        if container["image"].endswith(":latest") or ":" not in container["image"]:
            complain(inside, f"{container['image']} names no version")
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                complain(inside, f"{variable['name']} is a secret in the environment")
        for mount in container["volumeMounts"]:
            if mount["name"] not in mounted:
                complain(inside, f"there is no volume {mount['name']}")
    member = spec["containers"][0]
    for probe in ("startupProbe", "livenessProbe"):
        if member[probe]["httpGet"]["path"] != "/liveness":
            complain(where, f"{probe} asks for more than that the process goes round")
    if not member["readinessProbe"]["httpGet"]["path"].startswith("/readiness"):
        complain(where, "readinessProbe is not /readiness")
    data = labels["app.kubernetes.io/component"] != "witness"
    if spec["terminationGracePeriodSeconds"] < (300 if data else 30):
        complain(where, "no time for the hand-over")
    if workload["spec"].get("podManagementPolicy") != "Parallel":
        complain(where, "founding needs all pods at once")


def service_rules(where, service, workloads):
    selector = service["spec"]["selector"].items()
    reached = [w for w in workloads if selector <= w["spec"]["template"]["metadata"]["labels"].items()]
    if not reached:
        complain(where, "it selects nothing")
    for port in service["spec"]["ports"]:
        target = port["targetPort"]
        for workload in reached:
            named = [p for c in workload["spec"]["template"]["spec"]["containers"] for p in c.get("ports", [])]
            headless = service["spec"].get("clusterIP") == "None"
            if not any(target in (p["name"], p["containerPort"]) for p in named) and not headless:
                complain(where, f"{workload['metadata']['name']} has no port {target}")
    if service["metadata"]["name"] == "pg-peers":
        if service["spec"].get("clusterIP") != "None" or not service["spec"].get("publishNotReadyAddresses"):
            complain(where, "members that are not ready cannot find each other")


def members(overlay, things, workload):
    """What each pod of a workload is configured with."""
    spec = workload["spec"]["template"]["spec"]
    config = next(v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "config")
    files = [t["data"] for t in things if t["kind"] == "ConfigMap" and t["metadata"]["name"] == config]
    if len(files) != 1 or "rhone.toml" not in files[0]:
        complain(overlay, f"no rhone.toml in {config}")
        return
    for ordinal in range(workload["spec"].get("replicas", 2)):
        name = f"{workload['metadata']['name']}-{ordinal}"
        env = {}
        for variable in spec["containers"][0]["env"]:
            value = variable.get("value", name).replace("$(RHONE_NODE_NAME)", name)
            if "$(" in value:
                complain(overlay, f"{variable['name']} refers to an unknown variable: {value}")
            env[variable["name"]] = value
        founding = workload["metadata"]["name"] != "pg-read"
        if founding and env["RHONE_NODE_ADVERTISE"] not in env["RHONE_NODE_PEERS"].split(","):
            complain(overlay, f"{name} is not among its own peers")
        yield {"overlay": overlay, "member": name, "toml": files[0]["rhone.toml"], "env": env}


def main(folder):
    configured = []
    for path in sorted(pathlib.Path(folder).glob("*.yaml")):
        things = [thing for thing in yaml.safe_load_all(path.read_text()) if thing]
        workloads = [thing for thing in things if thing["kind"] == "StatefulSet"]
        for thing in things:
            where = f"{path.stem}: {thing['kind']}/{thing['metadata']['name']}"
            schema(where, thing)
            if thing["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
                complain(where, "Rhone asks Kubernetes nothing")
            if thing["kind"] == "Service":
                service_rules(where, thing, workloads)
        for workload in workloads:
            pod_rules(f"{path.stem}: {workload['metadata']['name']}", workload)
            configured += members(path.stem, things, workload)
    print(json.dumps(configured))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
