//! Says in words of our own why tract refused a model: its errors print tensors, which may be weights.

use tract_onnx::prelude::TractError;

use crate::{LoadError, contract::shown};

const TEXT_MAX: usize = 300;
/// So many numbers in a row are data; a shape in a message is seldom longer.
const NUMBERS_MAX: usize = 4;

/// The outermost context that names a node, and the innermost cause.
pub(super) fn unloadable(error: &TractError) -> LoadError {
    let place = error.chain().find_map(|cause| place(&cause.to_string()));
    let cause = sanitised(&error.root_cause().to_string());
    let text = match place {
        Some(place) => format!("{place}: {cause}"),
        None => cause,
    };
    LoadError::Unloadable(cut(text))
}

/// `Building node NAME (OP)`, `Failed analyse for node #3 "NAME" OP`, `… node #3 "NAME" OP …`
fn place(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let text = |name: &str, operator: &str| match shown(name.trim()) {
        name if name.is_empty() => format!("at a node `{}`", shown(operator.trim())),
        name => format!("at the node `{name}` ({})", shown(operator.trim())),
    };
    if let Some(rest) = line.strip_prefix("Building node ") {
        let (name, operator) = rest.rsplit_once('(')?;
        return Some(text(name, operator.trim_end_matches(')')));
    }
    let rest = line.split_once("node #")?.1;
    let (_, rest) = rest.split_once('"')?;
    let (name, rest) = rest.split_once('"')?;
    // Some operators have a variant in angle brackets.
    let operator = rest.split_whitespace().next()?.split('<').next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_';
    operator.chars().all(plain).then(|| text(name, operator))
}

/// The first line without fractions, without runs of numbers, without the numbers that follow a tensor's type,
/// and without names of source files.
fn sanitised(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut words: Vec<&str> = Vec::new();
    let mut numbers = 0;
    let mut in_dump = false;
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.');
        let digits = bare.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let unreal = bare.eq_ignore_ascii_case("nan") || bare.eq_ignore_ascii_case("inf");
        let number = digits || unreal;
        numbers = if number { numbers + 1 } else { 0 };
        in_dump = is_dump(bare) || (in_dump && number);
        let dumped = in_dump && number;
        let fraction = unreal || (digits && (bare.contains('e') || is_fraction(bare)));
        let hidden = dumped
            || fraction
            || numbers > NUMBERS_MAX
            || word.matches(',').count() > 2 * NUMBERS_MAX
            || word.contains(".rs");
        match hidden {
            true if words.last() == Some(&"…") => {}
            true => words.push("…"),
            false => words.push(word),
        }
    }
    words.join(" ")
}

/// `0.5`, but not the range `0..5`.
fn is_fraction(word: &str) -> bool {
    word.replace("..", " ").contains('.')
}

/// `3,4,F32` introduces the values of a tensor.
fn is_dump(word: &str) -> bool {
    const TYPES: [&str; 15] = [
        "F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "Bool",
        "String", "TDim", "Blob",
    ];
    let datum = word.rsplit_once(',').map_or(word, |(_, datum)| datum);
    TYPES.contains(&datum)
}

fn cut(text: String) -> String {
    let mut text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect();
    if text.chars().count() == TEXT_MAX {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_tensors_are_cut_out() {
        for (raw, clean) in [
            ("Can't cast 2,3,F32 0.25, 17, 3 to I64", "Can't cast … to I64"),
            (
                "Invalid range 0..600 for slicing 512,F32 1.5, 2.5",
                "Invalid range 0..600 for slicing …",
            ),
            ("Impossible to unify Sym(N) with Val(1).", "Impossible to unify Sym(N) with Val(1)."),
            ("weights are 0.1 0.2 -0.3e-9 NaN inf", "weights are …"),
            ("codes 1 2 3 4 5 6 7 8", "codes 1 2 3 4 …"),
            ("panicked in src/ops/x.rs:1:2 so", "panicked in … so"),
            ("No super type for F32 and I64", "No super type for F32 and I64"),
            ("Only(,F32 7) is no I64", "Only(,F32 … is no I64"),
            ("first\nsecond", "first"),
        ] {
            let text = sanitised(raw);
            assert!(!text.contains("0.2") && !text.contains("17"), "{text}");
            assert_eq!(text, clean);
        }
    }

    #[test]
    fn the_node_is_found() {
        assert_eq!(place("Building node a (Conv)").unwrap(), "at the node `a` (Conv)");
        assert_eq!(place("Building node  (Conv)").unwrap(), "at a node `Conv`");
        let text = "Failed analyse for node #7 \"/l1/MatMul\" MatMul";
        assert_eq!(place(text).unwrap(), "at the node `/l1/MatMul` (MatMul)");
        assert_eq!(place("elsewhere"), None);
    }
}
