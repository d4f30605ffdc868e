//! What tenants have used, month by month.
