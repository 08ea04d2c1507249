"""One file a runtime, all behind the seam in base.py."""
