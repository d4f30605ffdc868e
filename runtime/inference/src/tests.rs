//! The plane as its callers see it.

mod brief;
mod hostile;
mod models;
mod mutations;
mod plane;
mod registry;
mod rewrite;
mod rows;
mod scheduler;
mod sizes;
mod strings;
mod threads;
