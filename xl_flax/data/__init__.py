"""From seqio tasks to batches: vocabulary, packed cache, stream."""
