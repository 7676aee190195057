"""The published low-cost ensembles, each a pure function from the configuration to phases of the one training loop."""
