//! The plane as its callers see it.

mod hostile;
mod models;
mod mutations;
mod plane;
mod rewrite;
mod sizes;
