"""The names for Python: light to import, and what notebooks show."""

from __future__ import annotations

import subprocess
import sys

import pytest

import instatune_deploy
from instatune_deploy.errors import RecipeError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Candidate, ParetoFront, Predicted
from instatune_deploy.values.html import html_table
from instatune_deploy.values.space import Architecture

RECIPE = {"model": "m", "task": "text-classification", "data": {"train": "x"}, "targets": {"cpu-avx2": ["50%"]}}


def test_the_package_is_light_until_it_is_used() -> None:
    code = "import sys, instatune_deploy; print({'torch', 'transformers', 'openvino'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_every_name_is_there_and_no_other() -> None:
    for name in instatune_deploy.__all__:
        assert getattr(instatune_deploy, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        instatune_deploy.nothing  # noqa: B018


def test_a_recipe_may_be_given_by_its_keys() -> None:
    with pytest.raises(RecipeError, match="recipe: unknown key 'modle'; did you mean 'model'"):
        instatune_deploy.run({**RECIPE, "modle": "x"})


def test_a_front_is_a_table_in_a_notebook() -> None:
    network = Architecture.uniform(2, 4, 64)
    predicted = Predicted(0.91234, 2_000_000_000, 1.5, "predictor")
    front = ParetoFront.of([Candidate(network, Deployment("openvino", "int8"), predicted)])
    shown = front._repr_html_()
    for text in (str(network), "ov-int8-1t", "91.23", "1.5", "latency, ms (predicted)", "predictor"):
        assert text in shown


def test_texts_in_tables_are_escaped() -> None:
    assert "<script>" not in html_table("<script>", ["<script>"], [["<script>"]])
