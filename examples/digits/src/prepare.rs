//! From a picture of any size to the 8 x 8 pixels that the model reads.
//!
//! 1. Ink: how much darker (or, on black, lighter) than the ground a pixel is.
//! 2. The bounding box of what is inked.
//! 3. That box, centred in a square, averaged down to 8 x 8.
//!
//! All of it is done in whole numbers, so that another implementation gets the very same result.

use sandpiper_guest::{Error, Result};

use crate::Gray;

/// The model's picture has this many pixels in each direction.
pub const SIDE: usize = 8;

/// Shades that lie closer together than this are the grain of the paper.
const CONTRAST_MIN: u8 = 16;

/// The pixels for the model: row by row, 0 is no ink and 1 the most ink there is.
pub fn prepare(gray: Gray) -> Result<[f32; SIDE * SIDE]> {
    let width = gray.width;
    let ink = ink(gray);
    let marks = Marks::of(&ink, width);
    let most = marks.rows.iter().copied().max().unwrap_or(0);
    let least = ink.iter().copied().min().unwrap_or(0);
    if most - least < CONTRAST_MIN {
        return Err(Error::unprocessable("no digit found: the picture is of one shade"));
    }
    let bounds = marks.bounds(most);
    let sums = average(&ink, width, &bounds);
    let most = sums.iter().copied().max().unwrap_or(0).max(1);
    Ok(sums.map(|sum| (sum as f64 / most as f64) as f32))
}

/// The border of the picture says which shade is the ground.
fn ink(gray: Gray) -> Vec<u8> {
    let Gray { width, height, mut luma } = gray;
    let mut sum = 0;
    let mut count = 0;
    for (y, row) in luma.chunks_exact(width).enumerate() {
        let whole = y == 0 || y == height - 1;
        let step = if whole || width == 1 { 1 } else { width - 1 };
        for pixel in row.iter().step_by(step) {
            sum += u64::from(*pixel);
            count += 1;
        }
    }
    if sum > 127 * count {
        luma.iter_mut().for_each(|pixel| *pixel = 255 - *pixel);
    }
    luma
}

struct Bounds {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// The most ink in each row and in each column. Whole rows are compared, many pixels at a time.
struct Marks {
    rows: Vec<u8>,
    columns: Vec<u8>,
}

impl Marks {
    fn of(ink: &[u8], width: usize) -> Self {
        let mut columns = vec![0; width];
        let mut rows = Vec::with_capacity(ink.len() / width);
        for row in ink.chunks_exact(width) {
            rows.push(row.iter().copied().fold(0, u8::max));
            columns.iter_mut().zip(row).for_each(|(most, ink)| *most = (*most).max(*ink));
        }
        Self { rows, columns }
    }

    /// The smallest box around every pixel with more than a quarter of the most ink.
    fn bounds(&self, most: u8) -> Bounds {
        // In whole numbers, 4 x ink > most is the same.
        let span = |marks: &[u8]| {
            let inked = |ink: &u8| *ink > most / 4;
            let first = marks.iter().position(inked).unwrap_or(0);
            let last = marks.iter().rposition(inked).unwrap_or(first);
            (first, last - first + 1)
        };
        let ((left, width), (top, height)) = (span(&self.columns), span(&self.rows));
        Bounds { left, top, width, height }
    }
}

/// The ink in each of 8 x 8 cells. A pixel on the edge between cells counts for each by its share.
///
/// Along either axis a pixel is 8 units long and a cell as many units as the square has pixels, so
/// that every share is a whole number. Rows are added up before columns are: adding whole rows is what
/// a processor does many pixels at a time. A sum is at most 4096 rows x 8 units x 255 shades.
fn average(ink: &[u8], stride: usize, bounds: &Bounds) -> [u64; SIDE * SIDE] {
    let side = bounds.width.max(bounds.height);
    let left = (side - bounds.width) / 2;
    let top = (side - bounds.height) / 2;
    let mut sums = [0; SIDE * SIDE];
    let mut columns = vec![0u32; bounds.width];
    for cell_y in 0..SIDE {
        columns.fill(0);
        for y in pixels_of(cell_y, side, top, bounds.height) {
            let share = share(y, cell_y, side);
            let start = (bounds.top + y - top) * stride + bounds.left;
            let row = &ink[start..start + bounds.width];
            columns.iter_mut().zip(row).for_each(|(sum, ink)| *sum += share * u32::from(*ink));
        }
        for cell_x in 0..SIDE {
            let pixels = pixels_of(cell_x, side, left, bounds.width);
            sums[cell_y * SIDE + cell_x] = pixels
                .map(|x| u64::from(share(x, cell_x, side)) * u64::from(columns[x - left]))
                .sum();
        }
    }
    sums
}

/// The pixels of the square that lie in a cell and in the box, which begins at `start` and is `length` long.
fn pixels_of(cell: usize, side: usize, start: usize, length: usize) -> std::ops::Range<usize> {
    let (low, high) = (cell * side / SIDE, ((cell + 1) * side).div_ceil(SIDE));
    low.max(start)..high.min(start + length)
}

/// How many of a pixel's 8 units lie in a cell.
fn share(pixel: usize, cell: usize, side: usize) -> u32 {
    let start = (pixel * SIDE).max(cell * side);
    let end = ((pixel + 1) * SIDE).min((cell + 1) * side);
    end.saturating_sub(start) as u32
}
