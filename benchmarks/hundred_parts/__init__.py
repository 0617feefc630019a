"""The parts of `hundred_million.py`: its data, the ledger of what was handed out, and the training that is killed."""
