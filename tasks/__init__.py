"""seqio Tasks and Mixtures: what the data is."""
