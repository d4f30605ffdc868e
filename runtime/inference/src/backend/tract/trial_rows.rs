//! Rows to try batches with, and whether two answers to a row are the same.

use sandpiper_domain::{DataType, NamedTensor, Tensor};

use super::TractProgram;
use crate::batch;

/// Rows taken of one of the samples that came with the model.
const SAMPLE_ROWS_MAX: usize = 32;

/// The single rows of samples as the graph takes them, as far as they fit the model and have the shapes of the first.
pub(super) fn rows_of(program: &TractProgram, samples: &[Vec<NamedTensor>]) -> Vec<Vec<Tensor>> {
    let mut rows: Vec<Vec<Tensor>> = Vec::new();
    for sample in samples {
        let inputs = program.contract.order(sample.clone());
        let Ok(inputs) = inputs.and_then(|inputs| program.edges.enter(inputs)) else { continue };
        let count = inputs.first().and_then(|input| input.shape().first()).copied().unwrap_or(0);
        for number in 0..count.min(SAMPLE_ROWS_MAX) {
            let row: Option<Vec<Tensor>> =
                inputs.iter().map(|input| batch::row(input, number)).collect();
            let Some(row) = row else { continue };
            let shapes =
                |row: &[Tensor]| row.iter().map(|t| t.shape().to_vec()).collect::<Vec<_>>();
            if rows.first().is_none_or(|first| shapes(first) == shapes(&row)) {
                rows.push(row);
            }
        }
    }
    rows
}

/// Splitmix64: even enough for a sample, and the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The bytes of one element.
    pub(super) fn element(&mut self, datatype: Option<DataType>) -> Vec<u8> {
        let bits = self.next();
        let unit = (bits >> 40) as f32 / (1u32 << 24) as f32;
        match datatype {
            Some(DataType::F32) => unit.to_le_bytes().to_vec(),
            Some(DataType::F64) => f64::from(unit).to_le_bytes().to_vec(),
            // One half and up: the exponent stays the same.
            Some(DataType::F16) => (0x3800 | (bits & 0x3ff) as u16).to_le_bytes().to_vec(),
            Some(other) => {
                let mut bytes = vec![0; other.size_min()];
                if let Some(first) = bytes.first_mut() {
                    *first = (bits & 1) as u8;
                }
                bytes
            }
            None => Vec::new(),
        }
    }
}

/// The same bits, or floats no further from each other than the tolerance.
pub(super) fn agrees(a: &Tensor, b: &Tensor, tolerance: f32) -> bool {
    if a.shape() != b.shape() || a.datatype() != b.datatype() {
        return false;
    }
    if a.data() == b.data() {
        return true;
    }
    let near = |a: f64, b: f64| (a - b).abs() <= f64::from(tolerance) || a.to_bits() == b.to_bits();
    let data = (a.data(), b.data());
    match a.datatype() {
        _ if tolerance == 0.0 => false,
        DataType::F32 => {
            let (a, b) = (data.0.as_chunks().0, data.1.as_chunks().0);
            let value = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
            a.iter().zip(b).all(|(a, b)| near(value(a), value(b)))
        }
        DataType::F64 => {
            let (a, b) = (data.0.as_chunks().0, data.1.as_chunks().0);
            a.iter().zip(b).all(|(a, b)| near(f64::from_le_bytes(*a), f64::from_le_bytes(*b)))
        }
        _ => false,
    }
}
