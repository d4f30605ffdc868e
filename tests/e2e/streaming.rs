//! Bodies that stream both ways.
