//! Reading and writing of tensors: literal cases, round trips, and mutations of good requests.

use bytes::Bytes;
use proptest::prelude::*;
use sandpiper_domain::{DataType, ModelSignature, NamedTensor, Tensor, TensorSpec};

use super::{
    json,
    request::{self, InferRequest},
    response::{self, Format},
    service::InferAnswer,
    tensor::InputSpec,
};

/// The bytes of a tensor whose data is given as JSON, or the words of the refusal.
fn read(datatype: &str, shape: &[i64], data: &str) -> Result<Vec<u8>, String> {
    let raw: &serde_json::value::RawValue = serde_json::from_str(data).unwrap();
    let spec = InputSpec::new("x", datatype, shape).map_err(|error| error.to_string())?;
    let tensor = json::read_tensor(&spec, raw.get()).map_err(|error| error.to_string())?;
    Ok(tensor.tensor.data().to_vec())
}

#[test]
fn integers_are_exact_over_their_whole_range() {
    let both = |datatype, low: &str, high: &str| read(datatype, &[2], &format!("[{low},{high}]"));
    let i64s = both("INT64", "-9223372036854775808", "9223372036854775807").unwrap();
    assert_eq!(i64s, [i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()].concat());
    let u64s = both("UINT64", "0", "18446744073709551615").unwrap();
    assert_eq!(u64s, [0u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat());
    assert_eq!(both("INT8", "-128", "127").unwrap(), [0x80, 0x7f]);
    // Beyond 53 bits, where a float would round.
    assert_eq!(
        read("INT64", &[1], "[9007199254740993]").unwrap(),
        9007199254740993i64.to_le_bytes()
    );
}

#[test]
fn numbers_that_a_type_cannot_hold_are_refused() {
    for (datatype, number) in [
        ("INT8", "128"),
        ("INT8", "-129"),
        ("UINT8", "-1"),
        ("UINT8", "256"),
        ("INT16", "32768"),
        ("UINT32", "4294967296"),
        ("INT64", "9223372036854775808"),
        ("UINT64", "18446744073709551616"),
        ("UINT64", "-1"),
        ("INT32", "1.5"),
        ("INT32", "1.0"),
        ("INT32", "1e2"),
        ("FP32", "1e39"),
        ("FP32", "-1e400"),
        ("FP64", "1e309"),
        ("FP16", "65520"),
        ("BF16", "1e39"),
        ("BOOL", "2"),
        ("FP32", "\"1\""),
        ("FP32", "null"),
        ("FP32", "true"),
        ("FP32", "{\"a\":1}"),
        ("BOOL", "\"true\""),
    ] {
        let error = read(datatype, &[1], &format!("[{number}]")).unwrap_err();
        assert!(error.contains(datatype) && error.contains("element 0"), "{number}: {error}");
        assert!(
            !error.contains(number) || number == "true" || number == "null" || number.len() < 3,
            "{error}"
        );
    }
}

#[test]
fn floats_are_rounded_once() {
    let f32_of = |text: &str| read("FP32", &[1], &format!("[{text}]")).unwrap();
    assert_eq!(f32_of("0.1"), 0.1f32.to_le_bytes());
    // Just above the middle between two floats: through a double it would fall to the wrong side.
    let text = "1.00000005960464477539062500000000000000000000000001";
    assert_eq!(f32_of(text), f32::from_bits(0x3f80_0001).to_le_bytes());
    assert_eq!(f32_of("-0.0"), (-0.0f32).to_le_bytes());
    assert_eq!(f32_of("1e-50"), 0f32.to_le_bytes());
    assert_eq!(read("FP16", &[2], "[1.5, -65504]").unwrap(), [0x00, 0x3e, 0xff, 0xfb]);
    assert_eq!(read("FP16", &[1], "[1.000488281251]").unwrap(), [0x01, 0x3c]);
    assert_eq!(read("BF16", &[1], "[1]").unwrap(), [0x80, 0x3f]);
    assert_eq!(read("BOOL", &[4], "[true,false,1,0]").unwrap(), [1, 0, 1, 0]);
}

#[test]
fn data_is_flat_or_nested_as_the_shape_is() {
    for (shape, data) in [
        (&[2, 3][..], "[1,2,3,4,5,6]"),
        (&[2, 3], "[[1,2,3],[4,5,6]]"),
        (&[2, 3], " [ [ 1 , 2,3 ] ,\n[4,5,6]\t] "),
        (&[1, 2, 3], "[[[1,2,3],[4,5,6]]]"),
        (&[6], "[1,2,3,4,5,6]"),
    ] {
        assert_eq!(read("UINT8", shape, data).unwrap(), [1, 2, 3, 4, 5, 6], "{data}");
    }
    assert_eq!(read("UINT8", &[], "[7]").unwrap(), [7]);
    for (shape, data) in [(&[0][..], "[]"), (&[2, 0], "[[],[]]"), (&[2, 0], "[]"), (&[0, 3], "[]")]
    {
        assert_eq!(read("UINT8", shape, data).unwrap(), [0u8; 0], "{shape:?} {data}");
    }
}

#[test]
fn data_that_does_not_fit_the_shape_is_refused() {
    for (shape, data) in [
        (&[2, 3][..], "[1,2,3,4,5]"),
        (&[2, 3], "[1,2,3,4,5,6,7]"),
        (&[2, 3], "[[1,2],[3,4],[5,6]]"),
        (&[2, 3], "[[1,2,3,4],[5,6]]"),
        (&[2, 3], "[[[1,2,3],[4,5,6]]]"),
        (&[1, 2, 3], "[[1,2,3],[4,5,6]]"),
        (&[2, 3], "[1,[2,3],4,5,6]"),
        (&[2, 3], "[[1,2,3],4,5,6]"),
        (&[2, 3], "7"),
        (&[2, 3], "{}"),
        (&[2], "[[1,2]]"),
        (&[0], "[1]"),
        (&[1], "[]"),
        (&[], "7"),
        (&[], "[]"),
    ] {
        assert!(read("UINT8", shape, data).is_err(), "{shape:?} {data}");
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read("UINT8", &[1], &deep).is_err());
}

#[test]
fn a_shape_reserves_no_more_than_was_sent() {
    // 8 TiB, if the shape were believed.
    assert!(read("FP64", &[1 << 40], "[1]").unwrap_err().contains("1 were given"));
}

fn whole(body: &[u8], json_length: Option<usize>) -> Result<InferRequest, String> {
    whole_of(body, json_length, DataType::F32)
}

/// A request for a model that takes `a` of this type, `b` and `c`, of whatever shape.
fn whole_of(body: &[u8], json_length: Option<usize>, a: DataType) -> Result<InferRequest, String> {
    let kinds = |b| [("a", a), ("b", b), ("c", DataType::F32)];
    let b = if body.windows(5).any(|word| word == b"UINT8") { DataType::U8 } else { DataType::F32 };
    let inputs = kinds(b).map(|(name, datatype)| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: Vec::new(),
    });
    let signature = ModelSignature { inputs: inputs.to_vec(), outputs: Vec::new() };
    let read = request::read(&Bytes::copy_from_slice(body), json_length, &signature);
    read.map_err(|error| error.to_string())
}

#[test]
fn a_list_of_inputs_does_not_grow_with_the_text() {
    let body = |count: usize| {
        let one = r#"{"name":"a","shape":[0],"datatype":"FP32","data":[]}"#;
        format!(r#"{{"inputs":[{}]}}"#, vec![one; count].join(","))
    };
    assert_eq!(whole(body(1024).as_bytes(), None).unwrap().inputs.len(), 1024);
    let error = whole(body(1025).as_bytes(), None).unwrap_err();
    assert!(error.contains("at most 1024"), "{error}");
}

#[test]
fn what_does_not_fit_the_model_is_refused_before_its_data_is_read() {
    let spec = |shape: &[i64]| TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::F32,
        shape: shape.to_vec(),
    };
    let signature = ModelSignature { inputs: vec![spec(&[-1, 4])], outputs: Vec::new() };
    for (name, shape, datatype, word) in [
        ("y", "[1,4]", "FP32", "no input `y`"),
        ("x", "[1,5]", "FP32", "the model takes [-1, 4]"),
        ("x", "[4]", "FP32", "the model takes [-1, 4]"),
        ("x", "[1,4]", "INT64", "the model takes FP32"),
        ("x", "[1,4]", "FP32", "element 0 is a string"),
    ] {
        let body = format!(
            r#"{{"inputs":[{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":["s"]}}]}}"#
        );
        let error = request::read(&Bytes::from(body), None, &signature).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn binary_tensors_follow_the_json_in_the_order_of_the_inputs() {
    let head = br#"{"id":"7","parameters":{"binary_data_output":true,"timeout":1500,"priority":2},"inputs":[
        {"name":"a","shape":[2],"datatype":"INT16","parameters":{"binary_data_size":4}},
        {"name":"b","shape":[1],"datatype":"UINT8","data":[9]},
        {"name":"c","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}],
        "outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z"}]}"#;
    let body = [&head[..], &[1, 0, 2, 0], &1.5f32.to_le_bytes()].concat();
    let request = whole_of(&body, Some(head.len()), DataType::I16).unwrap();
    assert_eq!(request.id.as_deref(), Some("7"));
    assert_eq!(request.timeout.unwrap().as_micros(), 1500);
    assert_eq!(request.priority, 2);
    let data: Vec<_> = request.inputs.iter().map(|input| input.tensor.data().to_vec()).collect();
    assert_eq!(data, [vec![1, 0, 2, 0], vec![9], 1.5f32.to_le_bytes().to_vec()]);
    let wanted: Vec<_> = request.outputs.iter().map(|o| (o.name.as_str(), o.is_binary)).collect();
    assert_eq!(wanted, [("y", false), ("z", true)]);
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    let head = br#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#;
    let body = |data: &[u8]| [&head[..], data].concat();
    assert!(whole(&body(&[0; 4]), Some(head.len())).is_ok());
    for (data, length, word) in [
        (&[0u8; 4][..], Some(head.len() + 5), "bytes"),
        (&[0; 4], Some(usize::MAX), "bytes"),
        (&[0; 3], Some(head.len()), "3 are left"),
        (&[0; 5], Some(head.len()), "1 bytes more"),
        (&[], None, "0 are left"),
        (&[0; 4], Some(head.len() - 1), "JSON"),
        (&[0; 4], None, "JSON"),
    ] {
        let error = whole(&body(data), length).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    let huge = br#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":18446744073709551615}}]}"#;
    assert!(whole(huge, Some(huge.len())).is_err());
}

#[test]
fn what_the_protocol_has_and_this_server_has_not_is_refused_by_name() {
    let with = |parameters: &str, input: &str, output: &str| {
        let text = format!(
            r#"{{"parameters":{parameters},"inputs":[{{"name":"a","shape":[1],"datatype":"FP32",{input}}}],"outputs":[{{"name":"y","parameters":{output}}}]}}"#
        );
        whole(text.as_bytes(), None)
    };
    let data = r#""data":[1]"#;
    assert!(with("{\"mine\":{\"x\":[1]}}", data, "{\"theirs\":1}").is_ok());
    for said in ["\"sequence_id\":1", "\"sequence_id\":\"a\"", "\"sequence_start\":true"] {
        let refused = with(&format!("{{{said}}}"), data, "{}").unwrap_err();
        assert!(refused.contains("sequences"), "{said}: {refused}");
    }
    // What says that there is no sequence is passed over, as over gRPC.
    let neutral = r#"{"sequence_id":0,"sequence_start":false,"sequence_end":null}"#;
    assert!(with(neutral, data, "{}").is_ok());
    assert!(with("{\"sequence_id\":\"\",\"sequence_end\":0}", data, "{}").is_ok());
    assert!(with("{\"sequence_id\":[0]}", data, "{}").is_err());
    assert!(with("{}", data, "{\"classification\":2}").unwrap_err().contains("classification"));
    let shared = r#""parameters":{"shared_memory_region":"r"}"#;
    assert!(with("{}", shared, "{}").unwrap_err().contains("shared memory"));
    let both = r#""data":[1],"parameters":{"binary_data_size":4}"#;
    assert!(with("{}", both, "{}").unwrap_err().contains("both"));
    assert!(with("{}", r#""parameters":{}"#, "{}").unwrap_err().contains("neither"));
}

fn raw(shape: &[i64], bytes: usize) -> Result<Vec<usize>, String> {
    let spec = |shape: &[i64]| TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::F32,
        shape: shape.to_vec(),
    };
    let signature = ModelSignature { inputs: vec![spec(shape)], outputs: vec![] };
    let request = request::read_raw(&Bytes::from(vec![0; bytes]), &signature);
    request.map(|r| r.inputs[0].tensor.shape().to_vec()).map_err(|error| error.to_string())
}

#[test]
fn a_raw_body_takes_its_shape_from_the_model_and_its_length() {
    assert_eq!(raw(&[2, 3], 24).unwrap(), [2, 3]);
    assert_eq!(raw(&[-1, 3], 24).unwrap(), [2, 3]);
    assert_eq!(raw(&[3, -1], 24).unwrap(), [3, 2]);
    assert_eq!(raw(&[-1, -1], 24).unwrap(), [1, 6]);
    assert_eq!(raw(&[], 4).unwrap(), [0usize; 0]);
    for (shape, bytes) in [
        (&[2, 3][..], 20),
        (&[-1, 3], 20),
        (&[-1, 0], 4),
        (&[-1, -1, -1], 24),
        (&[3, -1, -1], 24),
        (&[-1, i64::MAX, 2], 24),
    ] {
        assert!(raw(shape, bytes).is_err(), "{shape:?} {bytes}");
    }
}

fn answer(datatype: DataType, shape: &[u64], data: Vec<u8>) -> InferAnswer {
    let tensor = Tensor::new(datatype, shape, data.into()).unwrap();
    let outputs = vec![NamedTensor { name: "y".to_owned(), tensor }];
    InferAnswer { model_name: "m".to_owned(), model_version: 3, outputs }
}

fn written(answer: &InferAnswer, binary_by_default: bool) -> Result<(String, Vec<u8>), String> {
    let format = Format { id: Some("a\"1".to_owned()), outputs: vec![], binary_by_default };
    let written = response::write(answer, &format).map_err(|error| error.to_string())?;
    let (head, rest) = written.body.split_at(written.json_length.unwrap_or(written.body.len()));
    Ok((String::from_utf8(head.to_vec()).unwrap(), rest.to_vec()))
}

#[test]
fn an_answer_is_written_as_the_protocol_says() {
    let one = answer(DataType::F32, &[1, 2], [0.1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
    let (head, rest) = written(&one, false).unwrap();
    assert_eq!(
        head,
        r#"{"id":"a\"1","model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.1,2.0]}]}"#
    );
    assert!(rest.is_empty());
    let (head, rest) = written(&one, true).unwrap();
    assert_eq!(
        head,
        r#"{"id":"a\"1","model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}"#
    );
    assert_eq!(rest, **one.outputs[0].tensor.data());
}

#[test]
fn json_says_null_for_nan_and_refuses_infinity() {
    let of = |number: f32| answer(DataType::F32, &[1], number.to_le_bytes().to_vec());
    assert!(written(&of(f32::NAN), false).unwrap().0.contains(r#""data":[null]"#));
    assert!(written(&of(f32::NEG_INFINITY), false).unwrap_err().contains("binary_data"));
    assert!(written(&of(f32::NEG_INFINITY), true).is_ok());
}

fn any_tensor() -> impl Strategy<Value = (DataType, Vec<u64>, Vec<u8>)> {
    let datatype = prop_oneof![
        Just(DataType::Bool),
        Just(DataType::U8),
        Just(DataType::I16),
        Just(DataType::U32),
        Just(DataType::I64),
        Just(DataType::U64),
        Just(DataType::F16),
        Just(DataType::BF16),
        Just(DataType::F32),
        Just(DataType::F64),
    ];
    let shape = prop::collection::vec(0u64..4, 0..5);
    (datatype, shape).prop_flat_map(|(datatype, shape)| {
        let bytes = shape.iter().product::<u64>() as usize * datatype.size_min();
        let data = prop::collection::vec(any::<u8>(), bytes);
        (Just(datatype), Just(shape), data)
    })
}

/// The same bytes with what JSON cannot carry made something that it can.
fn sayable(datatype: DataType, data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for element in data.chunks_mut(datatype.size_min()) {
        match datatype {
            DataType::Bool => element[0] &= 1,
            // A bit of the exponent off: finite.
            DataType::F16 => element[1] &= 0xbf,
            DataType::BF16 => element[1] &= 0xbf,
            DataType::F32 => element[3] &= 0xbf,
            DataType::F64 => element[7] &= 0xbf,
            _ => {}
        }
    }
    data
}

proptest! {
    #[test]
    fn every_tensor_comes_back_from_json_and_from_bytes((datatype, shape, data) in any_tensor()) {
        let data = sayable(datatype, &data);
        let given = Tensor::new(datatype, &shape, data.clone().into()).unwrap();
        let mut text = Vec::new();
        json::write_tensor(&mut text, "x", &given).unwrap();
        let sizes: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let name = datatype.name();
        let read_back = read(name, &sizes, std::str::from_utf8(&text).unwrap()).unwrap();
        prop_assert_eq!(&read_back, &data);
        let spec = InputSpec::new("x", name, &sizes).unwrap();
        prop_assert_eq!(spec.with_bytes(data.into()).unwrap().tensor, given);
    }

    #[test]
    fn all_strings_come_back_from_json_within_the_bytes_that_are_set_aside(
        texts in prop::collection::vec(any::<String>(), 0..6),
        odd in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let bytes = texts.iter().map(String::as_bytes);
        let shape = [texts.len() as u64];
        let given = Tensor::of_strings(&shape, bytes.clone()).unwrap();
        let mut text = Vec::new();
        json::write_tensor(&mut text, "x", &given).unwrap();
        let text = String::from_utf8(text).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), texts.clone());
        let read_back = read("BYTES", &[texts.len() as i64], &text).unwrap();
        prop_assert_eq!(&read_back[..], &given.data()[..]);
        let one = answer(DataType::Bytes, &shape, read_back);
        let format = || Format { id: None, outputs: vec![], binary_by_default: false };
        let body = response::write(&one, &format()).unwrap().body;
        prop_assert!(body.len() as u64 <= response::length_max(&one, &format()));
        // Any bytes are a string, and those that are no UTF-8 are none for JSON.
        let shape = [texts.len() as u64 + 1];
        let other = Tensor::of_strings(&shape, bytes.chain([&odd[..]])).unwrap();
        let is_said = json::write_tensor(&mut Vec::new(), "x", &other).is_ok();
        prop_assert_eq!(is_said, std::str::from_utf8(&odd).is_ok());
    }

    #[test]
    fn any_json_is_read_without_a_panic(
        data in r#"[\[\], 0-9.eE+\-"a\\{}:ntrue]{0,60}"#,
        shape in prop::collection::vec(0i64..4, 0..4),
        datatype in "(FP32|BYTES)",
    ) {
        let text = format!(r#"{{"inputs":[{{"name":"x","shape":{shape:?},"datatype":"{datatype}","data":{data}}}]}}"#);
        let _ = whole(text.as_bytes(), None);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        length in prop::option::of(0usize..250),
    ) {
        let _ = whole(&body, length);
    }
}

/// A fuzzer of fixed length: good requests, with bytes changed, cut, doubled and swapped. `tests/fuzz` has the one that
/// never ends.
#[test]
fn mutations_of_good_requests_are_read_without_a_panic() {
    let head = br#"{"id":"1","parameters":{"binary_data_output":true},"inputs":[{"name":"a","shape":[2,2],"datatype":"INT16","parameters":{"binary_data_size":8}},{"name":"b","shape":[2,1],"datatype":"FP32","data":[[1.5],[-2e3]]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let good = [&head[..], &[1, 0, 2, 0, 3, 0, 4, 0]].concat();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let words: [&[u8]; 8] =
        [b"-1", b"9223372036854775807", b"[", b"]", b"\"", b"null", b"1e999", b"\xff\xff\xff\xff"];
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut body = good.clone();
        for _ in 0..=random(3) {
            let at = random(body.len());
            match random(4) {
                0 => body[at] = random(256) as u8,
                1 => drop(body.splice(at..at, words[random(words.len())].iter().copied())),
                2 => drop(body.drain(at..(at + random(12)).min(body.len()))),
                _ => body.truncate(body.len() - random(10)),
            }
            if body.is_empty() {
                body.push(b'{');
            }
        }
        let length = match random(3) {
            0 => random(good.len() * 2),
            _ => head.len(),
        };
        accepted += usize::from(whole_of(&body, Some(length), DataType::I16).is_ok());
    }
    // Some mutations harm nothing, and most do.
    assert!((100..10_000).contains(&accepted), "{accepted} of 20000");
}
