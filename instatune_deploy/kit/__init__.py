"""Kits: latency tables of devices on which this package, and PyTorch, are not installed.

`pack` writes a zip with every network to measure and the very code that measures here; on the device, ``python run.py`` (see
`runner`) writes ``results.zip``; `import_results` makes tables of it here.
"""

from instatune_deploy.kit.packing import pack
from instatune_deploy.kit.results import import_results

__all__ = ["import_results", "pack"]
