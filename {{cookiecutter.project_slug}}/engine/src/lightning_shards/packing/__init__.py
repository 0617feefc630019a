"""From a user's images to a dataset: list the source, plan splits and order, write shards in processes."""
