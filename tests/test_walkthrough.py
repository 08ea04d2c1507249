"""A user's way from a model and data to a served artifact."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.walkthrough import TEXTS, walk


def test_five_commands_lead_to_a_served_artifact(tmp_path: Path) -> None:
    if find_spec("mlserver") is None:  # not imported: its messages and tritonclient's cannot be in one process
        pytest.skip("the extra serve is not installed")
    typed, answer = walk(tmp_path)
    assert len(typed) <= 5
    assert all(command.startswith(("instatune-deploy ", "curl ")) for command in typed)
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["logits"]["shape"] == [len(TEXTS), 2]
