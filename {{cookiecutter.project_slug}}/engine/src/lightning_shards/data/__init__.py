"""From tars on disk or behind URLs to batches: what an image passes through, without Lightning and without a model."""
