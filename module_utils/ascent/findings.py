"""Findings: the one shape in which every stage reports what is wrong.

>>> finding("D01", "error", "port 8000 is taken", host="a3-01")["severity"]
'error'
"""

from __future__ import annotations

__all__ = ["SEVERITIES", "failed", "finding", "in_a_line", "message", "sort_findings"]

from typing import Any, Dict, Iterable, List, Mapping, Optional

#: From worst to mildest. Only ``error`` stops a stage.
SEVERITIES = ("error", "warning", "info")

_DETAILS = (("at", "evidence"), ("cause", "cause"), ("fix", "fix"))


def finding(
    id: str,
    severity: str,
    summary: str,
    *,
    host: Optional[str] = None,
    stage: Optional[str] = None,
    evidence: str = "",
    cause: str = "",
    fix: str = "",
) -> Dict[str, Any]:
    """One finding with every key of the contract (docs/architecture.md, section 2).

    Raises ValueError for a severity outside `SEVERITIES`: that is a mistake in our code, never in the input.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity!r} is not one of {SEVERITIES}")
    return {
        "id": id,
        "severity": severity,
        "host": host,
        "stage": stage,
        "summary": summary,
        "evidence": evidence,
        "cause": cause,
        "fix": fix,
    }


def failed(findings: Iterable[Dict[str, Any]]) -> bool:
    """True when any finding is an error."""
    return any(item["severity"] == "error" for item in findings)


def sort_findings(findings: Iterable[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Worst first, then by host and id, so that two runs over the same state print the same list."""
    return sorted(findings, key=lambda item: (SEVERITIES.index(item["severity"]), item["host"] or "", item["id"]))


def in_a_line(findings: Iterable[Mapping[str, Any]]) -> str:
    """What findings say, for the evidence of one that follows from them."""
    return "; ".join(f"{item['summary']} [{item['id']}]" for item in findings)


def message(findings: Iterable[Dict[str, Any]]) -> str:
    """Every error as an operator reads it: number, host, summary and id, then where it shows, why, and what to do."""
    lines: List[str] = []
    errors = [item for item in sort_findings(findings) if item["severity"] == "error"]
    for number, item in enumerate(errors, 1):
        place = f"{item['host']}: " if item["host"] and item["host"] not in item["summary"] else ""
        lines.append(f"{number}. {place}{item['summary']} [{item['id']}]")
        lines += [f"   {label}: {item[key]}" for label, key in _DETAILS if item[key]]
    return "\n".join(lines)
