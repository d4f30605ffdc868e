//! The plane as its callers see it.

mod hostile;
mod models;
mod mutations;
mod plane;
mod registry;
mod rewrite;
mod scheduler;
mod sizes;
mod threads;
