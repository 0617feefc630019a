"""Files on disk: tars, their indexes and `dataset.json`. No torch in here."""
