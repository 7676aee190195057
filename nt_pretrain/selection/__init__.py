"""Which neurons of a layer to keep, as a problem of zeros and ones, and ways to solve it; offline, on one CPU."""
