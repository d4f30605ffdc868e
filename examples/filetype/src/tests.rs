use std::{cell::Cell, rc::Rc};

use super::*;

/// A stand-in that is sure of one label, and counts its runs.
fn sure_of(name: &'static str, score: f32) -> (testing::Guard, Rc<Cell<u32>>) {
    let runs = Rc::new(Cell::new(0));
    let counter = Rc::clone(&runs);
    let guard = testing::model("magika", move |inputs| {
        counter.set(counter.get() + 1);
        assert_eq!(inputs.get("bytes")?.dims(), [1, 2048]);
        let mut scores = [0.0; LABELS.len()];
        scores[LABELS.iter().position(|label| label.name == name).unwrap()] = score;
        Ok([("target_label", Tensor::f32([1, LABELS.len()], &scores))])
    });
    (guard, runs)
}

fn ask(file: &[u8]) -> String {
    let response = testing::call(filetype, testing::post("/", file));
    String::from_utf8(response.body().to_vec()).unwrap()
}

fn features(file: &[u8]) -> Box<[i32; FEATURES]> {
    match Features::of(file) {
        Features::Enough(features) => features,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_confident_answer_is_passed_on() {
    let (_model, runs) = sure_of("python", 0.5);
    assert_eq!(
        ask(b"import sys\n"),
        r#"{"type":"python","score":0.5,"group":"code","mime_type":"text/x-python","is_text":true}"#
    );
    assert_eq!(runs.get(), 1);
}

#[test]
fn a_doubtful_answer_only_tells_text_from_the_rest() {
    for (name, score, expected, told) in [
        ("python", 0.49, "txt", true),
        ("zip", 0.49, "unknown", true),
        ("zip", 0.5, "zip", false),
        // These are easily mistaken and need more.
        ("markdown", 0.74, "txt", true),
        ("markdown", 0.75, "markdown", false),
        ("latex", 0.94, "txt", true),
        ("txt", 0.2, "txt", false),
        // These are what the model learned to call "nothing in particular".
        ("randombytes", 0.9, "unknown", true),
        ("randomtxt", 0.9, "txt", true),
    ] {
        let (_model, _) = sure_of(name, score);
        let answer = ask(b"some file or other");
        assert!(answer.contains(&format!("\"type\":\"{expected}\"")), "{name} {score}: {answer}");
        assert_eq!(answer.contains("model_type"), told, "{name} {score}: {answer}");
    }
}

#[test]
fn small_files_need_no_model() {
    let (_model, runs) = sure_of("zip", 1.0);
    for (file, expected) in [
        (&b""[..], "empty"),
        (b"hi", "txt"),
        (b"1234567", "txt"),
        (b"\xff\xfe", "unknown"),
        (b"   \n\n\n\t\t  1234567", "txt"),
        (&[b' '; 5000], "txt"),
    ] {
        let answer = ask(file);
        assert!(answer.contains(&format!("\"type\":\"{expected}\",\"score\":1.0")), "{answer}");
    }
    assert_eq!(runs.get(), 0);
    ask(b"12345678");
    assert_eq!(runs.get(), 1);
}

#[test]
fn a_short_file_fills_both_ends_and_padding_lies_between() {
    let features = features(b" \x0b\x0c12345678 \r\n");
    let text: Vec<i32> = b"12345678 \r\n".iter().map(|byte| i32::from(*byte)).collect();
    assert_eq!(features[..11], text);
    assert!(features[11..2048 - 11].iter().all(|feature| *feature == 256));
    let text: Vec<i32> = b" \x0b\x0c12345678".iter().map(|byte| i32::from(*byte)).collect();
    assert_eq!(features[2048 - 11..], text);
}

#[test]
fn of_a_long_file_only_the_ends_count() {
    let mut file = vec![b'a'; 10_000];
    file[1024] = b'x';
    file[10_000 - 1025] = b'x';
    let features = features(&file);
    assert!(features.iter().all(|feature| *feature == i32::from(b'a')));

    // White space is skipped within 4 KiB, not beyond.
    let mut file = vec![b' '; 4096];
    file.extend([b'z'; 4096]);
    assert_eq!(Features::of(&file), Features::TooFew { text: true });
    file[4088..4096].fill(b'y');
    assert_eq!(super::tests::features(&file)[7..9], [i32::from(b'y'), 256]);
}

#[test]
fn the_table_is_whole() {
    assert_eq!(LABELS.len(), 214);
    for (name, _) in THRESHOLDS {
        assert!(LABELS.iter().any(|label| label.name == name), "{name}");
    }
    for (name, _) in OVERWRITES {
        assert!(LABELS.iter().any(|label| label.name == name), "{name}");
    }
    assert!(LABELS.contains(&TXT));
}
