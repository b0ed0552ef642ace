"""Documentation of the action plugin of the same name, plugins/action/report_findings.py, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report_findings
short_description: Put findings into the run's record, and fail the host when one is an error
description:
  - Runs on the controller and contacts no host.
options:
  findings:
    description: Findings in the shape of docs/architecture.md, section 2.
    type: list
    elements: dict
    required: true
  metrics:
    description: Figures for the run's record.
    type: dict
    default: {}
author: [Ascent]
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
"""

EXAMPLES = r"""
- name: Judge the weights
  report_findings:
    findings: "{{ weights_observed | ascent_weights_findings(inventory_hostname, model=weights_model) }}"
"""

RETURN = r"""
findings:
  description: The findings, worst first.
  returned: always
  type: list
  elements: dict
metrics:
  description: The figures.
  returned: always
  type: dict
"""
