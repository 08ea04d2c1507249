"""`make demo` gets as far as a plan: its inputs are what `run` takes."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "benchmarks" / "demo.py"


def test_the_demo_makes_inputs_that_can_be_run(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--out", str(tmp_path / "digits"), "--dry-run"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=DEMO.parents[1])
    assert done.returncode == 0, done.stderr
    assert "elastic fine-tuning" in done.stdout
