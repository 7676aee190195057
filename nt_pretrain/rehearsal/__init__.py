"""Rehearsal: what one rank of a large machine would hold, send and need, found without the machine."""
