//! The embedded queue of jobs.
