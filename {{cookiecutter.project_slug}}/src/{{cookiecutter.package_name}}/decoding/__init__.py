"""From samples to rows of batches: images decoded and cropped by threads of a process of its own, without torch."""
