"""Tests of the engine, in place: what is edited in the template is what runs."""

from . import in_place as in_place  # first: it is where `train` and the team's package are found
