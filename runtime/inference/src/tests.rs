//! The plane as its callers see it.

mod hostile;
mod models;
mod plane;
mod registry;
mod scheduler;
mod sizes;
