//! Watches rollouts and ends them.
