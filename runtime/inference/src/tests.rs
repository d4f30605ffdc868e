//! The plane as its callers see it.

mod adhoc;
mod hostile;
mod models;
mod plane;
