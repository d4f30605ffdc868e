//! Admission, fairness and monthly budgets.
