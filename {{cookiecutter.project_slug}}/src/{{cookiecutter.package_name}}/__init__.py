"""Image training on WebDataset shards.

The rooms, in the order in which an image passes through them: `packing` (what the user has becomes tars), `shards`
(files on disk), `fetching` (remote shards and reading ahead), `loading` (from shards to batches), `training` (model,
objective, run). Arrows never point back.
"""
