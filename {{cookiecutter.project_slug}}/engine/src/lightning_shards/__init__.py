"""Image training on WebDataset shards.

The rooms, in the order in which an image passes through them: `packing` (what the user has becomes tars), `shards`
(files on disk), `fetching` (remote shards and reading ahead), `loading` (from shards to batches), `training` (model,
objective, run). Arrows never point back.
"""

import os

from .data.image_header import MAX_PIXELS

# OpenCV reads these when it is imported, by whatever module.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what is damaged is told in our own words
