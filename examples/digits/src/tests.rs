use sandpiper_guest::{ModelFailure, prelude::*};

use super::*;

fn png(width: u32, height: u32, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

fn gray(width: usize, luma: &[u8]) -> Gray {
    Gray { width, height: luma.len() / width, luma: luma.to_vec() }
}

/// A PNG header that promises more than there is.
fn promise(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(1, 1, png::ColorType::Grayscale, &[0]);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn the_most_likely_digit_is_the_answer() {
    let _model = testing::model("digits", |inputs| {
        let image = inputs.get("image")?;
        assert_eq!(image.dims(), [1, 1, 8, 8]);
        assert_eq!(image.to_f32()?, [1.0; 64]);
        let mut probs = [0.01; 10];
        probs[7] = 0.5;
        Ok([("probs", Tensor::f32([1, 10], &probs))])
    });
    let mut pixels = [255; 100];
    pixels[45] = 0;
    let body = png(10, 10, png::ColorType::Grayscale, &pixels);
    let response = testing::call(digits, testing::post("/", body));
    assert_eq!(response.body(), br#"{"digit":7,"confidence":0.5}"#);
}

#[test]
fn what_is_no_picture_of_a_digit_is_refused() {
    let blank = png(8, 8, png::ColorType::Grayscale, &[200; 64]);
    let noise: Vec<u8> =
        (0u32..4096).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut cut = png(64, 64, png::ColorType::Grayscale, &noise);
    cut.truncate(200);
    for (body, status, part) in [
        (Vec::new(), 400, "send a PNG"),
        (b"hello".to_vec(), 422, "neither"),
        (b"\x89PNG\r\n".to_vec(), 422, ""),
        (b"\xff\xd8\xff\xe0".to_vec(), 422, ""),
        (blank, 422, "no digit found"),
        (cut, 422, "end of file"),
        (promise(5000, 10), 422, "5000 x 10"),
        (promise(100_000, 100_000), 422, "100000 x 100000"),
        (promise(4096, 4096), 422, ""),
    ] {
        let response = testing::call(digits, testing::post("/", body));
        let text = String::from_utf8_lossy(response.body());
        assert_eq!(response.status(), status, "{part}: {text}");
        assert!(text.contains(part), "{text}");
    }
}

/// A small JPEG whose header promises more pixels, or another kind of coding.
fn jpeg_promise(width: u16, height: u16, marker: u8) -> Vec<u8> {
    let mut bytes = include_bytes!("testdata/dot.jpg").to_vec();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bytes[frame + 1] = marker;
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

#[test]
fn a_jpeg_too_large_to_hold_is_refused_by_its_header() {
    for (width, height, marker, part) in
        [(4097, 16, 0xc0, "width"), (4096, 3073, 0xc2, "a progressive JPEG")]
    {
        let error = decode(&jpeg_promise(width, height, marker)).unwrap_err();
        assert_eq!(error.status(), 422);
        assert!(error.message().contains(part), "{error}");
    }
}

#[test]
fn a_model_that_fails_is_a_gateway_error() {
    let _model = testing::model("digits", |_| -> Result<[(&str, Tensor); 0]> {
        Err(Error::model(ModelFailure::Timeout, "too slow"))
    });
    let body = png(3, 3, png::ColorType::Grayscale, &[255, 255, 255, 255, 0, 255, 255, 255, 255]);
    assert_eq!(testing::call(digits, testing::post("/", body)).status(), 504);
}

#[test]
fn colours_and_transparency_become_shades() {
    let rgba = [255, 0, 0, 255, 0, 255, 0, 255, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 128];
    let decoded = decode(&png(5, 1, png::ColorType::Rgba, &rgba)).unwrap();
    assert_eq!(decoded.luma, [76, 150, 29, 255, 127]);
    let decoded = decode(&png(2, 1, png::ColorType::GrayscaleAlpha, &[9, 255, 9, 0])).unwrap();
    assert_eq!(decoded.luma, [9, 255]);
    let decoded = decode(&png(1, 1, png::ColorType::Rgb, &[10, 20, 30])).unwrap();
    assert_eq!(decoded.luma, [18]);
}

#[test]
fn ink_is_what_differs_from_the_border() {
    let mut paper = [250; 25];
    paper[12] = 50;
    let black = paper.map(|luma| 255 - luma);
    let from_paper = prepare(gray(5, &paper)).unwrap();
    assert_eq!(from_paper, [1.0; 64], "one pixel fills the picture");
    assert_eq!(from_paper, prepare(gray(5, &black)).unwrap());
}

#[test]
fn a_tall_stroke_is_centred_and_keeps_its_shape() {
    // 2 x 16 pixels of ink: the square is 16 wide, so a cell is 2 x 2 and the stroke, 7 pixels from
    // the left, covers the right half of the fourth column and the left half of the fifth.
    let mut luma = vec![255; 20 * 20];
    for y in 2..18 {
        luma[y * 20 + 9] = 0;
        luma[y * 20 + 10] = 0;
    }
    let pixels = prepare(gray(20, &luma)).unwrap();
    for row in pixels.chunks(8) {
        assert_eq!(row, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn averaging_shares_pixels_between_cells() {
    // Three pixels side by side on 8 cells: the middle one ends two thirds into cell 5.
    let row = [0, 0, 0, 0, 0, 0, 255, 0, 255, 0, 0, 0, 0, 0, 0];
    let pixels = prepare(gray(5, &row)).unwrap();
    let third = |n: u32| (f64::from(n) / 3.0) as f32;
    // The square is 3 pixels wide and the ink one high: rows 8/3 to 16/3, a third of cell 2 first.
    let expected = [1.0, 1.0, third(2), 0.0, 0.0, third(2), 1.0, 1.0];
    assert_eq!(pixels[3 * 8..4 * 8], expected);
    assert_eq!(pixels[2 * 8], third(1));
    assert_eq!(pixels[5 * 8], third(1));
    assert_eq!(pixels[..16], [0.0; 16]);
}

#[test]
fn a_jpeg_reads_like_the_png() {
    let decoded = decode(include_bytes!("testdata/dot.jpg")).unwrap();
    assert_eq!((decoded.width, decoded.height), (16, 16));
    assert!(decoded.luma[0] > 240 && decoded.luma[8 * 16 + 8] < 16, "{decoded:?}");
    let decoded = decode(include_bytes!("testdata/dot-gray.jpg")).unwrap();
    assert_eq!(decoded.luma.len(), 256);
    assert!(decoded.luma[0] > 240 && decoded.luma[8 * 16 + 8] < 16, "{decoded:?}");
}
