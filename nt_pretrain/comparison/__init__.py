"""Compares methods: a grid of runs at one budget, one table, one figure, and what became of the claims."""
