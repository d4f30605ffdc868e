//! Which version of a split a caller gets, again and again.
