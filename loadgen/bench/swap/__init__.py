"""Swaps of a model's version under load, measured from outside the worker that makes them."""
