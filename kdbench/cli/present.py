"""Plain-text layouts of what :mod:`kdbench.describe` and :mod:`kdbench.plan.datasets` tell."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 110


def description(told: dict[str, Any]) -> str:
    """A task, the methods of one name, or a record."""
    if "methods" in told and "task" not in told:
        return "\n\n".join(_method(one) for one in told["methods"])
    return _task(told) if "task" in told else json.dumps(told["record"], indent=1)


def _method(told: dict[str, Any]) -> str:
    lines = [f"{told['method']} ({told['family']}): {told['title']}", f"{told['role']}, teacher: {told['teacher']}"]
    lines += [f"paper: {told['paper']}"] if told["paper"] else []
    lines += ["", told["doc"], "", "Hyper-parameters (method.NAME=VALUE):" if told["hyperparameters"] else ""]
    return "\n".join([*lines, *_fields(told["hyperparameters"], {})]).rstrip()


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


def _task(told: dict[str, Any]) -> str:
    lines = [
        f"{told['task']}: {told['title']}",
        f"family {told['family']}, {told['kind'].replace('_', ' ')}, metric {told['metric']}",
        _data("data", told["data"]),
        *(_data(f"data of scale={scale}", data) for scale, data in told["data_of_scales"].items()),
        f"methods: {', '.join(told['methods'])}",
        *_choices(told),
        *textwrap.wrap(told["notes"], WIDTH),
    ]
    for section, doc in told["sections"].items():
        paragraphs = f"{section}: {doc}".split("\n\n")
        lines += ["", *(line for text in paragraphs for line in textwrap.wrap(text, WIDTH))]
    for scale, sections in told["scales"].items():
        lines += ["", f"scale={scale}"]
        for section, fields in told["options"].items():
            lines += [f" {section}.", *_fields(fields, sections.get(section, {}))]
    if told["reported"]:
        lines += ["", "Reported elsewhere, not measured here:"]
    for entry in told["reported"]:
        spread = f" ± {entry['spread']:.4f}" if entry["spread"] is not None else ""
        who = f"{entry['arm']} ({entry['student']})" if entry["student"] else entry["arm"]
        lines.append(f"  {who}: {entry['metric']} {entry['value']:.4f}{spread}  [{entry['source']}]")
    return "\n".join(lines)


def _choices(told: dict[str, Any]) -> list[str]:
    """The card's defaults of methods, what arms search, and the primary comparison."""
    lines = []
    for name, values in told["defaults_of_methods"].items():
        lines.append(f"defaults of {name}: {' '.join(f'{key}={json.dumps(value)}' for key, value in values.items())}")
    if told["search"]:
        lines.append(f"every arm searches: {json.dumps(told['search'])}")
    if primary := told["primary"]:
        student = [f"student.{name}={value}" for name, value in primary["student"].items()]
        words = [f"scale={primary['scale']}", *student, *primary["settings"]]
        lines.append(f"primary comparison: {' '.join(words)}, by {primary['metric']}")
    lines += [f"reference: {told['reference']}"] if told["reference"] else []
    lines += [f"excused, {check}: {why}" for check, why in told["excused"].items()]
    return lines


def checked(told: dict[str, Any]) -> str:
    """A task that was checked, scale by scale."""
    lines = [f"{told['task']}: {told['family']}, {told['kind'].replace('_', ' ')}, metric {told['metric']}"]
    for scale, one in told["scales"].items():
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


def inventory(told: Sequence[dict[str, Any]]) -> str:
    """Data sets with the state of their files."""
    lines = []
    for one in told:
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


def doctor(told: dict[str, Any]) -> str:
    """Versions, devices and extras."""
    lines = [f"python {told['python']}"]
    lines += [f"{name} {found or 'MISSING'}" for name, found in told["packages"].items()]
    lines += [f"device: {device}" for device in told["devices"]]
    for extra, state in told["extras"].items():
        if state["missing"]:
            missing = ", ".join(state["missing"])
            lines.append(
                f"extra [{extra}]: missing {missing}; pip install 'kdbench[{extra}]' enables {state['enables']}"
            )
        else:
            lines.append(f"extra [{extra}]: installed")
    return "\n".join(lines)
