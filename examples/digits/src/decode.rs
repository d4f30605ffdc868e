//! From the bytes of a picture to shades of gray.

use std::io::Cursor;

use png::{ColorType, Transformations};
use sandpiper_guest::{Error, Result, ResultExt};
use zune_core::{colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

/// Pictures are refused by what their header says, before any pixel is allocated.
const SIDE_MAX: usize = 4096;
const PIXELS_MAX: usize = 16 << 20;
/// What the PNG decoder may allocate beside the pixels: the largest row, twice, and change.
const PNG_WORK_BYTES_MAX: usize = 4 << 20;
/// A progressive JPEG is held as coefficients too, up to six bytes a pixel.
const PROGRESSIVE_PIXELS_MAX: usize = 12 << 20;
/// A progressive JPEG is decoded again with every scan.
const JPEG_SCANS_MAX: usize = 32;

/// A picture in 256 shades of gray, row by row. 255 is white.
#[derive(Debug, PartialEq, Eq)]
pub struct Gray {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The pixels.
    pub luma: Vec<u8>,
}

/// Decodes a PNG or a JPEG, whichever the first bytes say.
pub fn decode(bytes: &[u8]) -> Result<Gray> {
    if bytes.starts_with(b"\x89PNG") {
        decode_png(bytes)
    } else if bytes.starts_with(b"\xff\xd8") {
        decode_jpeg(bytes)
    } else {
        Err(Error::unprocessable("the body is neither a PNG nor a JPEG"))
    }
}

fn check(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::unprocessable("the picture is empty"));
    }
    if width > SIDE_MAX || height > SIDE_MAX || width * height > PIXELS_MAX {
        return Err(Error::unprocessable(format!(
            "the picture has {width} x {height} pixels, more than {SIDE_MAX} x {SIDE_MAX}"
        )));
    }
    Ok(())
}

fn decode_png(bytes: &[u8]) -> Result<Gray> {
    let limits = png::Limits { bytes: PNG_WORK_BYTES_MAX };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // Palettes, small depths and transparent colours are expanded; of 16 bits the upper 8 stay.
    decoder.set_transformations(Transformations::normalize_to_color8());
    let header = decoder.read_header_info().or_unprocessable()?;
    let (width, height) = (header.width as usize, header.height as usize);
    check(width, height)?;
    let interlaced = header.interlaced;

    let mut reader = decoder.read_info().or_unprocessable()?;
    let (color, _) = reader.output_color_type();
    let mut luma = Vec::with_capacity(width * height);
    if interlaced {
        // Adam7 spreads every row over seven passes, so all of it is held at once.
        let size = reader.output_buffer_size().unwrap_or(usize::MAX);
        if size > 4 * PIXELS_MAX {
            return Err(Error::unprocessable("the picture is too large"));
        }
        let mut pixels = vec![0; size];
        reader.next_frame(&mut pixels).or_unprocessable()?;
        append_luma(&pixels, color, &mut luma)?;
    } else {
        while let Some(row) = reader.next_row().or_unprocessable()? {
            append_luma(row.data(), color, &mut luma)?;
        }
    }
    if luma.len() != width * height {
        return Err(Error::unprocessable("the picture is incomplete"));
    }
    Ok(Gray { width, height, luma })
}

fn append_luma(pixels: &[u8], color: ColorType, luma: &mut Vec<u8>) -> Result<()> {
    match color {
        ColorType::Grayscale => luma.extend_from_slice(pixels),
        ColorType::GrayscaleAlpha => {
            luma.extend(pixels.as_chunks().0.iter().map(|[gray, alpha]| over_white(*gray, *alpha)));
        }
        ColorType::Rgb => {
            luma.extend(pixels.as_chunks().0.iter().map(|[r, g, b]| luminance(*r, *g, *b)));
        }
        ColorType::Rgba => {
            luma.extend(pixels.as_chunks().0.iter().map(|[r, g, b, a]| {
                luminance(over_white(*r, *a), over_white(*g, *a), over_white(*b, *a))
            }));
        }
        ColorType::Indexed => return Err(Error::internal("a palette was not expanded")),
    }
    Ok(())
}

fn decode_jpeg(bytes: &[u8]) -> Result<Gray> {
    let options = DecoderOptions::default()
        .set_max_width(SIDE_MAX)
        .set_max_height(SIDE_MAX)
        .jpeg_set_max_scans(JPEG_SCANS_MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().or_unprocessable()?;
    let Some(info) = decoder.info() else {
        return Err(Error::unprocessable("the picture has no header"));
    };
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check(width, height)?;
    if !info.sof.is_sequential_dct() && width * height > PROGRESSIVE_PIXELS_MAX {
        return Err(Error::unprocessable(format!(
            "the picture has {width} x {height} pixels, more than a progressive JPEG may have here"
        )));
    }
    if decoder.input_colorspace() == Some(ColorSpace::Luma) {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::Luma));
    }
    let mut pixels = decoder.decode().or_unprocessable()?;
    if pixels.len() == width * height * 3 {
        to_luma(&mut pixels);
    } else if pixels.len() != width * height {
        return Err(Error::unprocessable("the picture has colours of an unusual kind"));
    }
    Ok(Gray { width, height, luma: pixels })
}

/// Makes shades of RGB in place: a photo and its shades side by side would take a third more memory.
fn to_luma(pixels: &mut Vec<u8>) {
    let count = pixels.len() / 3;
    for pixel in 0..count {
        if let Some([red, green, blue]) = pixels[3 * pixel..].first_chunk().copied() {
            pixels[pixel] = luminance(red, green, blue);
        }
    }
    pixels.truncate(count);
    pixels.shrink_to_fit();
}

/// One channel of a translucent pixel that lies on white paper.
fn over_white(channel: u8, alpha: u8) -> u8 {
    let (channel, alpha) = (u32::from(channel), u32::from(alpha));
    ((channel * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn luminance(red: u8, green: u8, blue: u8) -> u8 {
    let (red, green, blue) = (u32::from(red), u32::from(green), u32::from(blue));
    ((299 * red + 587 * green + 114 * blue + 500) / 1000) as u8
}
