"""The numbers by which ink is found."""

import json
from pathlib import Path

import pictures

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "pictures.json"


def test_the_published_counts_are_of_todays_thresholds():
    """Another threshold reads other pictures: `python experiments/pictures.py` counts them anew."""
    assert pictures.thresholds() == json.loads(RESULTS.read_text())["thresholds"]
