"""requirements-demo.txt: what the demo installs, each version with the hash of its file. Reads pip's installation report from stdin."""

from __future__ import annotations

import json
import sys
from typing import Any

HEAD = """\
# What `make demo` needs, each file by its SHA-256: CPython 3.11 on Linux, x86-64, torch as built for CPUs. `make lock` writes it.
# pip install --require-hashes -r requirements-demo.txt
"""


def line(installed: dict[str, Any]) -> str:
    """A requirement that only one file meets."""
    sha256 = installed["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{installed['metadata']['name']}=={installed['metadata']['version']} --hash=sha256:{sha256}"


def main() -> None:
    found = [one for one in json.load(sys.stdin)["install"] if "archive_info" in one["download_info"]]
    print(HEAD + "\n".join(sorted(map(line, found), key=str.lower)))


if __name__ == "__main__":
    main()
