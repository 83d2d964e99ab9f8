"""Fetches the vendored files of the manifest from npm's registry, and verifies them.

``python -m service.dashboard.vendor`` needs npm, which takes the registry from its own configuration. To update a
package, change its version, run it with ``--accept``, and look at the difference.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDORED = Path(__file__).parent / "static" / "vendor"
MANIFEST = VENDORED / "manifest.json"


def main() -> None:
    """Fetch all; raise ValueError if a file is not the one in the manifest, unless it is accepted."""
    packages: list[dict[str, Any]] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            name = f"{package['package']}@{package['version']}"
            subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(folder).glob("*.tgz")
            with tarfile.open(archive) as tar:
                for target, file in package["files"].items():
                    stream = tar.extractfile(f"package/{file['from']}")
                    assert stream is not None, "a regular file"
                    content = stream.read()
                    digest = hashlib.sha256(content).hexdigest()
                    if "--accept" in sys.argv:
                        file["sha256"] = digest
                    elif file["sha256"] != digest:
                        raise ValueError(f"{target} of {name} has the digest {digest}, not that of the manifest")
                    (VENDORED / target).write_bytes(content)
    if "--accept" in sys.argv:
        MANIFEST.write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
