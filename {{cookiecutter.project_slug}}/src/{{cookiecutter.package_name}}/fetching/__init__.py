"""Bringing shards near: what lies behind a URL, a node's copies of it, and reading ahead of the batches."""
