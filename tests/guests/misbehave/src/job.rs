//! What a job or a shard of a batch can do wrong.
