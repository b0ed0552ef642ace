"""Ascent's pure library: planning, rules, parsing and measuring, with no Ansible and no third-party import.

Modules on managed nodes import it as ``ansible.module_utils.ascent``; controller code and tests as ``ascent``.
Everything in here runs on Python 3.9 with the standard library alone, takes and returns plain dicts and lists, and has
no side effects unless its docstring says so.
"""

from __future__ import annotations
