//! Aliases, splits, rollouts and rollbacks.
