"""Offline tests, in the order in which the data flows: index, pack, order, loading, training, train.py."""
