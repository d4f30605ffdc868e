//! Keeps as many sandboxes ready as the demand wants.
