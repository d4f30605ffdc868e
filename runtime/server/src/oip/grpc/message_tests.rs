//! The messages against the proto files, which clients are made from.

use std::collections::BTreeSet;

/// Every field of a source by its message's name and its own, with its number. Both sources have one field a line.
type Fields = BTreeSet<(String, String, u32)>;

fn of_proto(text: &str) -> Fields {
    let mut fields = Fields::new();
    let mut open: Vec<String> = Vec::new();
    for line in text.lines().map(|line| line.split("//").next().unwrap().trim()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.ends_with("{}") {
            continue;
        } else if line.ends_with('{') {
            // A oneof's fields are those of its message.
            let is_message = ["message", "enum"].contains(&words[0]);
            open.push(if is_message { words[1].to_owned() } else { String::new() });
        } else if line == "}" {
            open.pop();
        } else if let Some((field, number)) = line.trim_end_matches(';').split_once(" = ")
            && let Some(message) = open.iter().rev().find(|name| !name.is_empty())
        {
            let name = field.split_whitespace().last().unwrap().to_owned();
            fields.insert((message.clone(), name, number.parse().unwrap()));
        }
    }
    fields
}

/// The fields of prost's structs; those of oneofs and enums have other names and are not among them.
fn of_rust(text: &str) -> Fields {
    let mut fields = Fields::new();
    let mut message = String::new();
    let mut tag = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            message = rest.split([' ', '{']).next().unwrap().to_owned();
        } else if let Some((_, rest)) = line.split_once("tag = \"") {
            tag = rest.split('"').next().unwrap().parse().ok();
        } else if let Some(rest) = line.strip_prefix("pub ")
            && let (Some((name, _)), Some(number)) = (rest.split_once(": "), tag.take())
        {
            // `type` is a word of Rust.
            let name = name.trim_start_matches("r#").to_owned();
            fields.insert((message.clone(), name, number));
        }
    }
    fields
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[test]
fn every_field_is_as_the_proto_files_say() {
    let protos = [
        include_str!("../../../proto/open_inference.proto"),
        include_str!("../../../proto/health.proto"),
    ];
    let rusts = [
        include_str!("message/admin.rs"),
        include_str!("message/infer.rs"),
        include_str!("message/health.rs"),
    ];
    let declared: Fields = protos
        .iter()
        .flat_map(|text| of_proto(text))
        .map(|(message, name, number)| (message, snake(&name), number))
        .collect();
    let written: Fields = rusts.iter().flat_map(|text| of_rust(text)).collect();
    let strange: Vec<_> = written.difference(&declared).collect();
    assert!(strange.is_empty(), "not in the proto files: {strange:?}");
    // What is left is in oneofs and enums.
    let messages: BTreeSet<&String> = written.iter().map(|(message, ..)| message).collect();
    let missing: Vec<_> = declared
        .difference(&written)
        .filter(|(message, name, _)| messages.contains(message) && !is_of_a_oneof(message, name))
        .collect();
    assert!(missing.is_empty(), "in the proto files alone: {missing:?}");
    assert!(written.len() > 90, "{}", written.len());
}

fn is_of_a_oneof(message: &str, name: &str) -> bool {
    (message, name) == ("ModelConfig", "dynamic_batching")
        || (["InferParameter", "ModelRepositoryParameter", "SettingValue"].contains(&message)
            && name.ends_with("_param"))
}
