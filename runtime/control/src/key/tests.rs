use proptest::prelude::*;

use super::*;

fn a_key() -> impl Strategy<Value = KeyText> {
    Just(()).prop_map(|()| KeyText::generate().unwrap().1)
}

#[test]
fn a_new_key_has_the_documented_form() {
    let (id, text) = KeyText::generate().unwrap();
    let text = text.expose();
    assert_eq!(text.len(), 65);
    assert!(text.starts_with(&format!("sp_{id}_")));
    assert_eq!(id_of(text), Some(id));
    assert_eq!(id.as_str().parse(), Ok(id));
}

#[test]
fn no_two_keys_are_alike() {
    let mut keys: Vec<_> = (0..100).map(|_| KeyText::generate().unwrap().0).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 100);
}

#[test]
fn nothing_secret_is_printed() {
    let (_, text) = KeyText::generate().unwrap();
    let pepper = Pepper::new(&[7; 32]);
    let operator: OperatorKey = "correct horse battery staple, indeed".parse().unwrap();
    let printed = format!("{text:?} {pepper:?} {operator:?} {:?}", pepper.mac(text.expose()));
    assert_eq!(printed, "KeyText(…) Pepper(…) OperatorKey(…) KeyMac(…)");
}

#[test]
fn the_mac_is_hmac_sha_256() {
    // The vector was computed with Python's `hmac.new(bytes([11] * 32), b"Hi There", "sha256")`.
    let mac = Pepper::new(&[11; 32]).mac("Hi There");
    let hex: String = mac.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7");
}

#[test]
fn a_short_operator_key_is_refused() {
    assert!("x".repeat(31).parse::<OperatorKey>().is_err());
    assert!("é".repeat(16).parse::<OperatorKey>().is_err());
    assert!("é".repeat(32).parse::<OperatorKey>().is_ok());
    assert!(OperatorKey::generate().unwrap().expose().parse::<OperatorKey>().is_ok());
}

proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in ".*") {
        prop_assert_eq!(id_of(&text), None);
        let _ = text.parse::<KeyId>();
    }

    #[test]
    fn text_of_the_right_shape_is_judged_without_a_panic(text in "sp_[a-zA-Zé0-9_]{40,70}") {
        prop_assert_eq!(id_of(&text), None);
    }

    #[test]
    fn one_wrong_character_is_seen(key in a_key(), place in 0usize..65, other in "[ -~é]") {
        let mut characters: Vec<char> = key.expose().chars().collect();
        let other = other.chars().next().unwrap();
        prop_assume!(characters[place] != other);
        characters[place] = other;
        prop_assert_eq!(id_of(&characters.iter().collect::<String>()), None);
    }

    #[test]
    fn a_cut_or_longer_key_is_refused(key in a_key(), length in 0usize..65) {
        prop_assert_eq!(id_of(&key.expose()[..length]), None);
        prop_assert_eq!(id_of(&format!("{}0", key.expose())), None);
    }
}
