//! Jobs: requests that are answered later.
