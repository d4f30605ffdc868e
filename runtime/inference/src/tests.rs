//! The plane as its callers see it.

mod bills;
mod brief;
mod hostile;
mod loads;
mod models;
mod mutations;
mod pins;
mod plane;
mod registry;
mod rewrite;
mod rows;
mod scheduler;
mod sizes;
mod strings;
mod threads;
