//! Whether a candidate is fit to take over: arithmetic over what was observed.
