"""A gate as JUnit's XML, which GitLab, GitHub's test reporters and Jenkins read: a test case for each clause."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from letgo.auditing.gate import Gate
from letgo.core.errors import not_writable
from letgo.core.files import written_whole
from letgo.core.terminal import visible
from letgo.runs.results import Result

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML file may hold, escaped or not."""


def write_junit(path: Path, gate: Gate, result: Result) -> Path:
    """Write the file whole; returns its path. What nobody can tell is a failure, too."""
    failed = [clause for clause in gate.clauses if clause.passed is not True]
    counts = {"tests": str(len(gate.clauses)), "failures": str(len(failed)), "errors": "0"}
    counts |= {"skipped": "0", "time": f"{result.total_seconds:.3f}"}
    name = result.audit.model if result.audit else str(result.config.get("output_dir") or result.run_id)
    suites = ElementTree.Element("testsuites", {"name": "letgo", **_of_all(counts)})
    about = {"name": _text(f"letgo {result.kind}: {name}"), "timestamp": result.created[:19]}
    suite = ElementTree.SubElement(suites, "testsuite", about | counts)
    properties = ElementTree.SubElement(suite, "properties")
    known = {"run_id": result.run_id, "letgo": result.letgo, "require": gate.require}
    known |= {"weights": result.audit.weights} if result.audit else {}
    for key, value in known.items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": _text(value)})
    for clause in gate.clauses:
        case = {"name": _text(clause.text), "classname": "letgo.gate", "time": "0"}
        element = ElementTree.SubElement(suite, "testcase", case)
        if clause.passed is not True:
            why = {"message": _text(clause.figures), "type": clause.outcome}
            ElementTree.SubElement(element, "failure", why).text = _text(clause.line())
    ElementTree.indent(suites)
    try:
        with written_whole(path) as temporary:
            ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def _of_all(counts: dict[str, str]) -> dict[str, str]:
    return {name: count for name, count in counts.items() if name != "skipped"}


def _text(text: str) -> str:
    return _NOT_XML.sub("�", visible(text))
