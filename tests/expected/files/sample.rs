//! A ring of the last few values.

use std::collections::VecDeque;

/// Keeps at most `limit` values, and forgets the oldest first.
#[derive(Debug, Default)]
pub struct Ring<T> {
    values: VecDeque<T>,
    limit: usize,
}

impl<T: Clone> Ring<T> {
    pub fn new(limit: usize) -> Self {
        Self { values: VecDeque::with_capacity(limit), limit }
    }

    pub fn push(&mut self, value: T) -> Option<T> {
        let oldest = if self.values.len() == self.limit { self.values.pop_front() } else { None };
        self.values.push_back(value);
        oldest
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }
}

fn main() {
    let mut ring = Ring::new(3);
    for n in 0..5 {
        ring.push(n);
    }
    println!("{:?}", ring.iter().collect::<Vec<_>>());
}
