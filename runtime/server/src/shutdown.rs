//! The order in which a node ends.
