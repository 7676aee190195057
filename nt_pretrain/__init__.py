"""Distributed pretraining of sparse multi-head ensembles."""

__version__ = "0.1.0"
