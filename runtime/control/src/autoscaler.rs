//! How many sandboxes a function needs: arithmetic over what was observed, without a clock of its own.
