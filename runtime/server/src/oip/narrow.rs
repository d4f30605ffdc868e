//! Decimal numbers as floats of 16 bits, rounded once.
//!
//! Two roundings, to `f32` or `f64` and then to 16 bits, may differ from one where the first ends halfway between two
//! floats of 16 bits. So the first rounds to odd: what is not exact gets an odd last digit, and the second then knows
//! which side of the middle it is on (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved
//! algorithms using rounding to odd", 2008).

use std::cmp::Ordering;

use half::{bf16, f16};

/// More digits than any finite `f32` has.
const DIGITS_MAX: usize = 160;

/// A number of JSON as FP16. Beyond the range it is an infinity.
pub(super) fn to_f16(token: &str) -> Option<f16> {
    odd(token, |wide| f16::from_f32(wide).to_f32() == wide).map(f16::from_f32)
}

/// A number of JSON as BF16. Beyond the range it is an infinity.
pub(super) fn to_bf16(token: &str) -> Option<bf16> {
    odd(token, |wide| bf16::from_f32(wide).to_f32() == wide).map(bf16::from_f32)
}

/// The number as `f32`, rounded to odd unless the target has the nearest one anyway.
fn odd(token: &str, is_exact: impl Fn(f32) -> bool) -> Option<f32> {
    let wide: f64 = token.parse().ok()?;
    let near = wide as f32;
    let order = match f64::from(near).abs().total_cmp(&wide.abs()) {
        Ordering::Equal if is_exact(near) || near.is_infinite() => return Some(near),
        Ordering::Equal => compare(near, token),
        order => order,
    };
    let bits = near.to_bits();
    Some(match order {
        Ordering::Equal => near,
        Ordering::Less => f32::from_bits(bits | 1),
        // Towards zero, whatever the sign; it is not zero, or it would not be the greater.
        Ordering::Greater => f32::from_bits((bits - 1) | 1),
    })
}

/// How a float stands to a decimal number, both without their signs and neither of them zero.
fn compare(float: f32, token: &str) -> Ordering {
    let exact = format!("{:.DIGITS_MAX$e}", float.abs());
    decimal(&exact).cmp(&decimal(token.trim_start_matches('-')))
}

/// The power of ten of the first digit that is not 0, and the digits from there on without zeros at the end.
fn decimal(text: &str) -> (i64, Vec<u8>) {
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = whole.bytes().chain(part.bytes());
    let zeros = digits.clone().take_while(|digit| *digit == b'0').count();
    let mut digits: Vec<u8> = digits.skip(zeros).collect();
    let length = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    digits.truncate(length);
    (exponent.saturating_add(whole.len() as i64 - zeros as i64), digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn f16_bits(token: &str) -> u16 {
        to_f16(token).unwrap().to_bits()
    }

    #[test]
    fn what_is_beyond_the_middle_is_rounded_up() {
        // 1 + 2^-11 is halfway between 1 and the next FP16, 0x3c01.
        assert_eq!(f16_bits("1.00048828125"), 0x3c00);
        assert_eq!(f16_bits("1.000488281251"), 0x3c01);
        assert_eq!(f16_bits("-1.000488281251"), 0xbc01);
        // Closer to the middle than an f64 can tell.
        assert_eq!(f16_bits("1.000488281250000000000000000000001"), 0x3c01);
        assert_eq!(f16_bits("100048828125.000000000000000000001E-11"), 0x3c01);
        assert_eq!(f16_bits("1.000488281249999999999999999999999"), 0x3c00);
        // 1 + 3 * 2^-11 is halfway between an odd one and an even one.
        assert_eq!(f16_bits("1.00146484375"), 0x3c02);
        assert_eq!(f16_bits("1.001464843749999999999999999999999"), 0x3c01);
        // 1 + 2^-8 is the same for BF16, whose 1 is 0x3f80.
        let bf16_bits = |token| to_bf16(token).unwrap().to_bits();
        assert_eq!(bf16_bits("1.00390625"), 0x3f80);
        assert_eq!(bf16_bits("1.00390625000000000000000000000001"), 0x3f81);
    }

    #[test]
    fn the_ends_of_the_range_are_kept() {
        assert_eq!(f16_bits("65519.99"), 0x7bff);
        assert!(to_f16("65520").unwrap().is_infinite());
        assert!(to_f16("1e999").unwrap().is_infinite());
        assert_eq!(f16_bits("-0"), 0x8000);
        assert_eq!(f16_bits("1e-999"), 0);
        // Half of the smallest FP16, 2^-25, and a little more.
        assert_eq!(f16_bits("2.98023223876953125e-8"), 0);
        assert_eq!(f16_bits("2.980232238769531250000000000001e-8"), 1);
        assert_eq!(to_bf16("3.3e38").unwrap().to_bits(), 0x7f78);
    }

    proptest! {
        #[test]
        fn around_every_middle_the_nearer_one_is_taken(bits in 1u16..0x67ff, tail in 1u32..1000) {
            let (low, high) = (f16::from_bits(bits), f16::from_bits(bits + 1));
            let middle = (f64::from(low) + f64::from(high)) / 2.0;
            // Below 2048 the middle has digits after the point; all of them are here.
            let text = format!("{middle:.60}");
            let even = if bits.is_multiple_of(2) { low } else { high };
            prop_assert_eq!(to_f16(&text).unwrap(), even);
            let above = format!("{text}{tail}");
            prop_assert_eq!(to_f16(&above).unwrap(), high);
            let digits = text.trim_end_matches('0').len();
            let below = format!("{}{}", &text[..digits - 1], "49".repeat(20));
            let last = text.as_bytes()[digits - 1];
            prop_assert_eq!(last, b'5');
            prop_assert_eq!(to_f16(&below).unwrap(), low);
        }
    }
}
