"""Plain-text layouts of what :mod:`kdbench.describe` and :mod:`kdbench.plan.datasets` tell."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 110


def description(described: dict[str, Any]) -> str:
    """A task, the methods of one name, or a record."""
    if "methods" in described and "task" not in described:
        return "\n\n".join(_method(one) for one in described["methods"])
    return _task(described) if "task" in described else json.dumps(described["record"], indent=1)


def _method(method: dict[str, Any]) -> str:
    lines = [
        f"{method['method']} ({method['family']}): {method['title']}",
        f"{method['role']}, teacher: {method['teacher']}",
    ]
    lines += [f"paper: {method['paper']}"] if method["paper"] else []
    lines += ["", method["doc"], "", "Hyper-parameters (method.NAME=VALUE):" if method["hyperparameters"] else ""]
    return "\n".join([*lines, *_fields(method["hyperparameters"], {})]).rstrip()


def _fields(fields: Sequence[dict[str, Any]], values: dict[str, Any]) -> list[str]:
    lines = []
    for field in fields:
        default = str(field["default"]).replace("'", '"')
        value = json.dumps(values[field["name"]]) if field["name"] in values else default
        lines += textwrap.wrap(
            f"{field['name']} = {value}  {field['doc']}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return lines


def _data(head: str, data: dict[str, str]) -> str:
    source = f"; source: {data['source']}" if data["source"] else ""
    return f"{head}: {data['title']}; licence: {data['licence']}{source}"


def _task(task: dict[str, Any]) -> str:
    lines = [
        f"{task['task']}: {task['title']}",
        f"family {task['family']}, {task['kind'].replace('_', ' ')}, metric {task['metric']}",
        _data("data", task["data"]),
        *(_data(f"data of scale={scale}", data) for scale, data in task["data_of_scales"].items()),
        f"methods: {', '.join(task['methods'])}",
        *_choices(task),
        *textwrap.wrap(task["notes"], WIDTH),
    ]
    for section, doc in task["sections"].items():
        paragraphs = f"{section}: {doc}".split("\n\n")
        lines += ["", *(line for text in paragraphs for line in textwrap.wrap(text, WIDTH))]
    for scale, sections in task["scales"].items():
        lines += ["", f"scale={scale}"]
        for section, fields in task["options"].items():
            lines += [f" {section}.", *_fields(fields, sections.get(section, {}))]
    if task["reported"]:
        lines += ["", "Reported elsewhere, not measured here:"]
    for entry in task["reported"]:
        spread = f" ± {entry['spread']:.4f}" if entry["spread"] is not None else ""
        who = f"{entry['arm']} ({entry['student']})" if entry["student"] else entry["arm"]
        lines.append(f"  {who}: {entry['metric']} {entry['value']:.4f}{spread}  [{entry['source']}]")
    return "\n".join(lines)


def _choices(task: dict[str, Any]) -> list[str]:
    """The card's defaults of methods, what arms search, and the primary comparison."""
    lines = []
    for name, values in task["defaults_of_methods"].items():
        lines.append(f"defaults of {name}: {' '.join(f'{key}={json.dumps(value)}' for key, value in values.items())}")
    if task["search"]:
        lines.append(f"every arm searches: {json.dumps(task['search'])}")
    if primary := task["primary"]:
        student = [f"student.{name}={value}" for name, value in primary["student"].items()]
        words = [f"scale={primary['scale']}", *student, *primary["settings"]]
        lines.append(f"primary comparison: {' '.join(words)}, by {primary['metric']}")
    lines += [f"reference: {task['reference']}"] if task["reference"] else []
    lines += [f"excused, {check}: {why}" for check, why in task["excused"].items()]
    return lines


def checked(task: dict[str, Any]) -> str:
    """A task that was checked, scale by scale."""
    lines = [f"{task['task']}: {task['family']}, {task['kind'].replace('_', ' ')}, metric {task['metric']}"]
    for scale, one in task["scales"].items():
        sizes = ", ".join(f"{split} {count}" for split, count in one["sizes"].items())
        lines += ["", f"scale={scale}: data {one['data']}; {sizes}; licence: {one['licence']}"]
        lines.append(f"  fingerprint {one['sha256'][:16]}…, of the split {one['split_sha256'][:16]}…")
        for split, classes in one["classes"].items():
            counts = ", ".join(f"{name} {count}" for name, count in classes.items())
            lines += textwrap.wrap(f"{split}: {counts}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        able = [name for name, obstacle in one["methods"].items() if obstacle is None]
        lines.append(f"  will run: {', '.join(able)}")
        lines += [f"  will not: {name}: {why}" for name, why in one["methods"].items() if why is not None]
    return "\n".join(lines)


def inventory(datasets: Sequence[dict[str, Any]]) -> str:
    """Data sets with the state of their files."""
    lines = []
    for one in datasets:
        lines.append(f"{one['name']} ({one['family']}): {one['state']}. {one['title']}; licence: {one['licence']}")
        lines += [f"  source: {one['source']}"] if one["source"] else []
        for file in one["files"]:
            checked = f"sha256 {file['sha256'][:16]}…" if file["sha256"] else "of your own making"
            lines.append(f"  {file['state']:<8} {file['name']}  {checked}  {file['path'] or ''}".rstrip())
        if one["state"] not in ("present", "generated"):
            lines += textwrap.wrap(f"how: {one['how']}", WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def rows(listed: Sequence[dict[str, Any]]) -> str:
    """Rows of a task as CSV; without names where they have none."""
    columns = ["id", "split", "name"] if any(row["name"] for row in listed) else ["id", "split"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue().rstrip("\n")


def doctor(installation: dict[str, Any]) -> str:
    """Versions, devices and extras."""
    lines = [f"python {installation['python']}"]
    lines += [f"{name} {version or 'MISSING'}" for name, version in installation["packages"].items()]
    lines += [f"device: {device}" for device in installation["devices"]]
    for extra, state in installation["extras"].items():
        if state["missing"]:
            missing = ", ".join(state["missing"])
            lines.append(
                f"extra [{extra}]: missing {missing}; pip install 'kdbench[{extra}]' enables {state['enables']}"
            )
        else:
            lines.append(f"extra [{extra}]: installed")
    return "\n".join(lines)
