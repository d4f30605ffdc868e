//! What is alive on this node, told as it changes.
