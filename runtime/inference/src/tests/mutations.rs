//! Damaged models by the thousand, the same ones in every run: each is refused or loads, and the process goes on.

use bytes::Bytes;
use prost::Message;
use tract_onnx::pb::{GraphProto, tensor_proto::DataType as Onnx};

use sandpiper_domain::ModelOptions;

use crate::{
    backend::tract,
    contain,
    testing::{
        D, adder, bytes, gather, integers, node, stump, value, weight, with_floats, with_int,
        with_ints,
    },
};

const ROUNDS: usize = 4000;
const STACK_BYTES: usize = 64 << 20;

/// Marsaglia's xorshift: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// One valid model for each part of the loader.
fn seeds() -> Vec<Bytes> {
    let x = || vec![value("x", Onnx::Float, &[D::N("N"), D::F(2)])];
    let y = || vec![value("y", Onnx::Float, &[])];
    let mut scaler = node("Scaler", &["x"], &["s"]);
    scaler.domain = "ai.onnx.ml".to_owned();
    let scaler = with_floats(with_floats(scaler, "offset", &[1., 2.]), "scale", &[3., 4.]);
    let mut map = with_ints(node("ZipMap", &["s"], &["y"]), "classlabels_int64s", &[0, 1]);
    map.domain = "ai.onnx.ml".to_owned();
    let table =
        GraphProto { node: vec![scaler, map], input: x(), output: y(), ..Default::default() };
    let hot = GraphProto {
        node: vec![node("OneHot", &["i", "depth", "values"], &["y"])],
        initializer: vec![integers("depth", &[4]), weight("values", &[2], &[0., 1.])],
        input: vec![value("i", Onnx::Int64, &[D::N("N")])],
        output: y(),
        ..Default::default()
    };
    let shift = GraphProto {
        node: vec![with_int(node("BitShift", &["i", "i"], &["y"]), "unused", 1)],
        input: vec![value("i", Onnx::Int32, &[D::F(3)])],
        output: vec![value("y", Onnx::Int32, &[])],
        ..Default::default()
    };
    let texts = super::strings::moved();
    vec![adder(), gather(), bytes(stump(&[])), bytes(table), bytes(hot), bytes(shift), texts]
}

fn mutate(seeds: &[Bytes], random: &mut Random) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].to_vec();
    for _ in 0..=random.below(3) {
        let place = random.below(data.len());
        match random.below(6) {
            0 => data[place] ^= 1 << random.below(8),
            1 => data[place] = random.below(256) as u8,
            2 => data.truncate(place + 1),
            3 => {
                let other = &seeds[random.below(seeds.len())];
                data.truncate(place);
                data.extend_from_slice(&other[random.below(other.len())..]);
            }
            // The largest varint, where a length, a size or a type may stand.
            4 => {
                let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
                data.splice(place..place, huge);
            }
            _ => {
                let end = place + random.below(data.len() - place);
                let twice = data[place..end].to_vec();
                data.splice(place..place, twice);
            }
        }
        if data.is_empty() {
            data.push(0);
        }
    }
    data
}

#[test]
fn a_damaged_model_is_refused_or_loads() {
    contain::install_hook();
    let seeds = seeds();
    for seed in &seeds {
        tract_onnx::pb::ModelProto::decode(&seed[..]).unwrap();
    }
    // As deep as the loader's own stack.
    let work = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let mut random = Random(0x5EED);
        let mut loaded = 0;
        for _ in 0..ROUNDS {
            let data = mutate(&seeds, &mut random);
            loaded += usize::from(tract::load(&data, &ModelOptions::default(), &[], None).is_ok());
        }
        loaded
    });
    let loaded = work.unwrap().join().expect("a load must not panic");
    // Many changes touch no more than a name.
    assert!(loaded > ROUNDS / 100 && loaded < ROUNDS, "{loaded} of {ROUNDS} load");
}
