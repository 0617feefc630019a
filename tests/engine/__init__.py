"""Tests of the engine, in place: what is edited in the template is what runs."""

PATIENCE = 900  # seconds for anything that is waited for: on the slowest machine, only what hangs takes longer
WARM_DECODING = "WARM_DECODING"  # variable with the Python for decoding processes, where it is another
