"""Tests of the engine, in place: what is edited in the template is what runs."""
