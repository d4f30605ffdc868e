//! Batches: one input, many shards, one output.
