"""Fetches an image from a plain registry into an archive: save.py DIRECTORY REFERENCE."""

from __future__ import annotations

import platform
import sys

from ascent import image_pulls, registry
from ascent_controller import image_archive

directory, reference = sys.argv[1:]
host = registry.split(reference).host
plain = registry.Client(host, at=[registry.Endpoint(f"http://{host}", False)], proxies={})
print(image_archive.save(directory, reference, [image_pulls.ARCHITECTURES[platform.machine()]], client=plain))
