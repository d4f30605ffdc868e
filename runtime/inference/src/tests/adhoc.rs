use std::{sync::Arc, time::Instant, path::Path};
use sandpiper_domain::{DataType, Model, NamedTensor};
use serde_json::Value;
use crate::{LoadedModel, testing::{f32s, named, plane, request, infer}};

fn dt(name: &str) -> DataType { serde_json::from_value(Value::String(name.into())).unwrap() }
fn flat(v: &Value, out: &mut Vec<Value>) { match v { Value::Array(a) => a.iter().for_each(|v| flat(v, out)), v => out.push(v.clone()) } }
fn num(v: &Value) -> f64 { match v { Value::String(s) => s.parse().unwrap(), Value::Bool(b) => *b as u8 as f64, v => v.as_f64().unwrap() } }
fn int(v: &Value) -> i128 { match v { Value::Bool(b) => *b as i128, v => v.as_i64().map(i128::from).or(v.as_u64().map(i128::from)).unwrap() } }
fn encode(d: DataType, data: &[Value]) -> Vec<u8> {
    data.iter().flat_map(|v| match d {
        DataType::F32 => (num(v) as f32).to_le_bytes().to_vec(),
        DataType::F64 => num(v).to_le_bytes().to_vec(),
        DataType::F16 => half::f16::from_f64(num(v)).to_le_bytes().to_vec(),
        d => int(v).to_le_bytes()[..d.size()].to_vec(),
    }).collect()
}
fn decode(d: DataType, data: &[u8]) -> Vec<f64> {
    data.chunks(d.size()).map(|c| match d {
        DataType::F32 => f32::from_le_bytes(c.try_into().unwrap()) as f64,
        DataType::F64 => f64::from_le_bytes(c.try_into().unwrap()),
        DataType::F16 => half::f16::from_le_bytes(c.try_into().unwrap()).to_f64(),
        _ => { let neg = matches!(d, DataType::I8|DataType::I16|DataType::I32|DataType::I64) && c[c.len()-1] & 0x80 != 0; let mut b = if neg {[255;16]} else {[0;16]}; b[..c.len()].copy_from_slice(c); i128::from_le_bytes(b) as f64 }
    }).collect()
}
fn tensor(name: &str, v: &Value) -> NamedTensor {
    let d = dt(v["datatype"].as_str().unwrap());
    let shape: Vec<u64> = v["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
    let mut data = vec![]; flat(&v["data"], &mut data);
    named(name, d, &shape, encode(d, &data))
}
fn compare(got: &NamedTensor, want: &NamedTensor) -> Result<f64, String> {
    if got.tensor.datatype() != want.tensor.datatype() || got.tensor.shape() != want.tensor.shape() { return Err(format!("{} {:?} vs {} {:?}", got.tensor.datatype(), got.tensor.shape(), want.tensor.datatype(), want.tensor.shape())); }
    let (g, w) = (decode(got.tensor.datatype(), got.tensor.data()), decode(want.tensor.datatype(), want.tensor.data()));
    let diff = g.iter().zip(&w).map(|(a, b)| if a.is_nan() && b.is_nan() {0.} else {(a - b).abs() / b.abs().max(1.)}).fold(0., f64::max);
    if diff > 1e-4 { Err(format!("differs by {diff}")) } else { Ok(diff) }
}
#[test]
#[ignore]
fn expected_models() {
    let all: Value = serde_json::from_slice(&std::fs::read("/tmp/expected/models/expected.json").unwrap()).unwrap();
    let plane = plane(2, 64);
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for m in all["models"].as_array().unwrap() {
        let file = m["file"].as_str().unwrap();
        let bytes = std::fs::read(Path::new("/tmp/expected/models").join(file)).unwrap();
        let t = Instant::now();
        let loaded = rt.block_on(plane.inspect(bytes.into()));
        let took = t.elapsed();
        let want = m["loads"].as_bool();
        let ok = want.is_none_or(|w| w == loaded.is_ok());
        match loaded {
            Err(e) => println!("{} {file}: refused in {took:?}: {e}", if ok {"ok  "} else {"BAD "}),
            Ok(model) => {
                println!("{} {file}: loaded in {took:?} {:?}", if ok {"ok  "} else {"BAD "}, model.signature());
                for (i, c) in m["cases"].as_array().into_iter().flatten().enumerate() {
                    let inputs: Vec<_> = c["inputs"].as_object().unwrap().iter().map(|(n, v)| tensor(n, v)).collect();
                    let out = infer(&model, inputs);
                    match (out, c.get("outputs")) {
                        (Ok(o), Some(w)) => for o in &o.outputs {
                            match compare(o, &tensor(&o.name, &w[&o.name])) { Ok(d) => println!("       case {i} {} ok {d:e}", o.name), Err(e) => println!("BAD    case {i} {}: {e}", o.name) }
                        },
                        (Err(e), None) => println!("       case {i} error as expected: {e}"),
                        (Err(e), Some(_)) => println!("BAD    case {i}: {e}"),
                        (Ok(_), None) => println!("BAD    case {i}: no error"),
                    }
                }
            }
        }
    }
}
fn bench(name: &str, model: &Arc<LoadedModel>, input: Vec<NamedTensor>, n: usize) {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stats = |mut v: Vec<std::time::Duration>| { v.sort(); format!("p50 {:?} p99 {:?}", v[v.len()/2], v[v.len()*99/100]) };
    let direct: Vec<_> = (0..n).map(|_| { let t = Instant::now(); model.run_here(request(input.clone())); t.elapsed() }).collect();
    let m = model.clone(); let i2 = input.clone();
    let (plane, computed) = rt.block_on(async move { tokio::spawn(async move { let mut p = vec![]; let mut c = vec![]; for _ in 0..n { let t = Instant::now(); let o = m.infer(request(i2.clone())).await.unwrap(); p.push(t.elapsed()); c.push(o.computed); } (p, c) }).await.unwrap() });
    println!("{name}: direct {}; plane {}; computed in plane {}; load {:?}", stats(direct), stats(plane), stats(computed), model.load_duration());
    let m = model.clone();
    let t = Instant::now();
    rt.block_on(async { let mut js = vec![]; for _ in 0..16 { let (m, i) = (m.clone(), input.clone()); js.push(tokio::spawn(async move { for _ in 0..n/8 { m.infer(request(i.clone())).await.unwrap(); } })); } for j in js { j.await.unwrap(); } });
    println!("   16 clients: {:.0}/s", (n/8*16) as f64 / t.elapsed().as_secs_f64());
}
#[test]
#[ignore]
fn latencies() {
    let exp: Value = serde_json::from_slice(&std::fs::read("/tmp/expected/expected.json").unwrap()).unwrap();
    let plane = plane(2, 64);
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let load = |p: &str| rt.block_on(plane.inspect(std::fs::read(p).unwrap().into())).unwrap();
    let iris = load("/work/main/examples/iris/model/iris.onnx");
    let digits = load("/work/main/examples/digits/model/digits.onnx");
    let magika = load("/tmp/expected/magika.onnx");
    for m in [&iris, &digits, &magika] { println!("{:?}", m.signature()); }
    let mut worst = 0f64;
    for d in exp["digits"].as_array().unwrap() {
        let px: Vec<f32> = d["pixels"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let o = infer(&digits, vec![f32s(&digits.signature().inputs[0].name, &[1,1,8,8], &px)]).unwrap();
        let g = decode(DataType::F32, o.outputs[0].tensor.data());
        for (a, b) in g.iter().zip(d["probs"].as_array().unwrap()) { worst = worst.max((a - b.as_f64().unwrap()).abs()); }
    }
    println!("digits worst {worst:e}");
    println!("iris expected {}", exp["iris"][0]);
    for d in exp["iris"].as_array().unwrap() {
        let px: Vec<f32> = d["row"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let o = infer(&iris, vec![f32s(&iris.signature().inputs[0].name, &[1,4], &px)]).unwrap();
        let l = decode(o.outputs[0].tensor.datatype(), o.outputs[0].tensor.data());
        let g = decode(DataType::F32, o.outputs[1].tensor.data());
        println!("{} {l:?} {g:?} vs {} {}", o.outputs[0].tensor.datatype(), d["label"], d["probabilities"]);
    }
    let mi = |n: u64| vec![named(&magika.signature().inputs[0].name, DataType::I32, &[n, 2048], (0..n*2048).flat_map(|i| ((i % 257) as i32).to_le_bytes()).collect())];
    for n in [1, 2, 3] { let t = Instant::now(); let o = infer(&magika, mi(n)).unwrap(); println!("magika {n}: {:?} {:?} computed {:?}", t.elapsed(), o.outputs[0].tensor.shape(), o.computed); }
    let ii = f32s(&iris.signature().inputs[0].name, &[1,4], &[5.1,3.5,1.4,0.2]);
    bench("iris", &iris, vec![ii], 4000);
    let di = f32s(&digits.signature().inputs[0].name, &[1,1,8,8], &[0.5; 64]);
    bench("digits", &digits, vec![di], 4000);
    bench("magika", &magika, mi(1), 160);
}
