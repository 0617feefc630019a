"""Before a run: what it will take on this machine, what limits it, and what another GPU would change."""
