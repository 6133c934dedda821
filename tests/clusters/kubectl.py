# SPDX-License-Identifier: Apache-2.0
"""A stand-in for kubectl and its API server: only kubectl's flags, with objects as files in a folder.

It refuses what the real ones refuse: unknown flags and namespaces, names that are not DNS labels, a Job whose template
changes, mounts without a volume, a failure policy for pods that restart in place. STATE/namespaces lists the
namespaces; STATE/down makes it fail; STATE/refuse holds an error message for the next `apply`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

STATE = Path(__file__).resolve().with_suffix(".state")  # tests copy this file to another place
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
JOB_FIELDS = {
    *("completionMode", "completions", "parallelism", "backoffLimit", "activeDeadlineSeconds"),
    *("ttlSecondsAfterFinished", "podFailurePolicy", "template"),
}


def fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(1)


class Parser(argparse.ArgumentParser):
    """Reports errors like kubectl."""

    def error(self, message: str) -> NoReturn:
        fail(f"error: {message}\nSee 'kubectl --help' for usage.")


def parse() -> argparse.Namespace:
    parser = Parser(prog="kubectl", allow_abbrev=False)
    parser.add_argument("--namespace", "-n", default="default")
    verbs = parser.add_subparsers(dest="verb", required=True)
    apply = verbs.add_parser("apply", allow_abbrev=False)
    apply.add_argument("--filename", "-f", required=True)
    apply.add_argument("--dry-run", choices=["none", "server", "client"], default="none")
    get = verbs.add_parser("get", allow_abbrev=False)
    get.add_argument("kinds")
    get.add_argument("--selector", "-l", required=True)
    get.add_argument("--output", "-o", choices=["json"], required=True)
    delete = verbs.add_parser("delete", allow_abbrev=False)
    delete.add_argument("objects", nargs="+")
    delete.add_argument("--ignore-not-found", action="store_true")
    delete.add_argument("--wait", choices=["true", "false"], default="true")
    logs = verbs.add_parser("logs", allow_abbrev=False)
    logs.add_argument("object")
    logs.add_argument("--container", "-c")
    logs.add_argument("--tail", type=int, default=-1)
    return parser.parse_args()


def path_of(namespace: str, kind: str, name: str) -> Path:
    return STATE / namespace / kind.lower() / f"{name}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def apply(options: argparse.Namespace) -> None:
    refuse = STATE / "refuse"
    if refuse.exists() and options.dry_run == "none":
        fail(refuse.read_text())
    source = sys.stdin.read() if options.filename == "-" else Path(options.filename).read_text()
    whole = json.loads(source)
    items = whole["items"] if whole["kind"] == "List" else [whole]
    for item in items:
        validate(item, options.namespace)
    for item in items:
        kind, name = item["kind"], item["metadata"]["name"]
        path = path_of(options.namespace, kind, name)
        known = read(path) if path.exists() else None
        if known is not None and kind == "Job" and known["spec"]["template"] != item["spec"]["template"]:
            fail(f'The Job "{name}" is invalid: spec.template: Invalid value: field is immutable')
        verb = "created" if known is None else "unchanged" if known["spec"] == item["spec"] else "configured"
        if options.dry_run == "none" and verb != "unchanged":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**item, "status": {"active": 1} if kind == "Job" else {}}))
        prefix = {"Job": "job.batch", "Service": "service"}[kind]
        print(f"{prefix}/{name} {verb}{' (server dry run)' if options.dry_run == 'server' else ''}")


def validate(item: dict[str, Any], namespace: str) -> None:
    kind, metadata, spec = item["kind"], item["metadata"], item["spec"]
    name = metadata["name"]
    if metadata.get("namespace", namespace) != namespace:
        fail(f"error: the namespace from the provided object does not match the namespace {namespace!r}")
    if (kind, item["apiVersion"]) not in (("Job", "batch/v1"), ("Service", "v1")):
        fail(f'error: no matches for kind "{kind}" in version "{item["apiVersion"]}"')
    form = DNS_1035 if kind == "Service" else DNS_LABEL
    if not form.fullmatch(name):
        fail(f'The {kind} "{name}" is invalid: metadata.name: Invalid value: {name!r}: a lowercase RFC label')
    if kind == "Service":
        if spec.get("clusterIP") != "None" or not spec.get("selector"):
            fail(f'The Service "{name}" is invalid: not a headless service with a selector')
        return
    if set(spec) - JOB_FIELDS:
        fail(f"Error from server (BadRequest): strict decoding error: unknown field {sorted(set(spec) - JOB_FIELDS)}")
    pod = spec["template"]["spec"]
    if spec.get("podFailurePolicy") and pod["restartPolicy"] != "Never":
        fail(f'The Job "{name}" is invalid: spec.template.spec.restartPolicy: Required value: only "Never"')
    if pod["restartPolicy"] not in ("Never", "OnFailure"):
        fail(f'The Job "{name}" is invalid: spec.template.spec.restartPolicy: Unsupported value')
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    if len({container["name"] for container in containers}) != len(containers):
        fail(f'The Job "{name}" is invalid: spec.template.spec.containers[0].name: Duplicate value')
    for container in containers:
        if not DNS_LABEL.fullmatch(container["name"]) or not container["image"]:
            fail(f'The Job "{name}" is invalid: spec.template.spec.containers[0]: Invalid value')
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes or ":" in mount["mountPath"]:
                fail(f'The Job "{name}" is invalid: volumeMounts[0].name: Not found: "{mount["name"]}"')


def get(options: argparse.Namespace) -> None:
    match = re.fullmatch(r"([\w./-]+) in \(([\w,-]+)\)", options.selector)
    if match is None:
        fail(f"error: unable to parse the selector {options.selector!r}")
    kinds = {"jobs": "job", "pods": "pod"}
    wanted = [kinds[kind] for kind in options.kinds.split(",")]
    paths = [path for kind in wanted for path in sorted((STATE / options.namespace / kind).glob("*.json"))]
    values = match[2].split(",")
    items = [item for item in map(read, paths) if item["metadata"]["labels"].get(match[1]) in values]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def delete(options: argparse.Namespace) -> None:
    for word in options.objects:
        kind, _, name = word.partition("/")
        path = path_of(options.namespace, kind, name)
        if not path.exists():
            if not options.ignore_not_found:
                fail(f'Error from server (NotFound): {kind} "{name}" not found')
            continue
        path.unlink()
        print(f'{kind} "{name}" deleted')
        for pod in (STATE / options.namespace / "pod").glob(f"{name}-*.json") if kind == "job" else ():
            pod.unlink()


def logs(options: argparse.Namespace) -> None:
    name = options.object.removeprefix("job/")
    if not path_of(options.namespace, "job", name).exists():
        fail(f'Error from server (NotFound): jobs.batch "{name}" not found')
    log = STATE / options.namespace / "logs" / f"{name}-{options.container}"
    lines = log.read_text().splitlines() if log.exists() else []
    print("\n".join(lines[-options.tail :] if options.tail > 0 else lines))


def main() -> None:
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    options = parse()
    if (STATE / "down").exists():
        fail("The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?")
    if options.namespace not in (STATE / "namespaces").read_text().split():
        fail(f'Error from server (NotFound): namespaces "{options.namespace}" not found')
    {"apply": apply, "get": get, "delete": delete, "logs": logs}[options.verb](options)


if __name__ == "__main__":
    main()
