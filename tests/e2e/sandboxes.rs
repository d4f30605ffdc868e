//! Fresh, prepared and reused sandboxes.
