"""From shards to batches: which sample comes when, its pixels, and the order's place in a training."""
