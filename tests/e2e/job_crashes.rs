//! Jobs and batches on a node that is killed.
