"""What a sample is: its fields, and what is done to each sample in the decoding processes.

The decoding processes import this module, so it imports no torch.
"""

from __future__ import annotations

fields = None  # what the dataset says: `image` and `target`
transform = None  # nothing but the crop and the flip that data.crop_scale and data.flip set
