//! Draining, signals and the replacement of a running server.
