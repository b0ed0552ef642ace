"""Changes one byte of an archive's largest part: damage.py DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

blob = max(Path(sys.argv[1]).glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
content = bytearray(blob.read_bytes())
content[-1] ^= 1
blob.write_bytes(content)
