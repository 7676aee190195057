"""Evaluation after training: any checkpoint, on any number of ranks, to a table, a JSON file and figures."""
