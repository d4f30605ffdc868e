//! Bodies that stream, with trailers and without.
