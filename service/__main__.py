"""``python -m service`` writes the OpenAPI document, as ``/openapi.json`` serves it, for people and for a diff."""

from __future__ import annotations

import json
import sys

from service.app import create_app
from service.settings import Settings

if __name__ == "__main__":
    document = create_app(Settings.of_process()).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
