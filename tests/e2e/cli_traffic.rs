//! The commands for versions and traffic.
