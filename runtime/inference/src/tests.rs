//! The plane as its callers see it.

mod hostile;
mod models;
mod plane;
mod scheduler;
mod sizes;
