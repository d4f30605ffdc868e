//! Writes small ONNX files, field by field as protobuf has them.

/// The element types used here, as ONNX numbers them.
pub const FLOAT: u64 = 1;
/// 64-bit integers.
pub const INT64: u64 = 7;
/// Strings.
pub const STRING: u64 = 8;

/// A graph in the making.
#[derive(Default)]
pub struct Onnx {
    graph: Vec<u8>,
}

/// One dimension.
pub enum Dim<'a> {
    /// A size.
    Fixed(u64),
    /// A name, or an expression of names.
    Named(&'a str),
}

impl Onnx {
    /// Adds a node of the operator `op`.
    pub fn node(mut self, op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| field(&mut node, 1, name.as_bytes()));
        outputs.iter().for_each(|name| field(&mut node, 2, name.as_bytes()));
        field(&mut node, 4, op.as_bytes());
        field(&mut self.graph, 1, &node);
        self
    }

    /// Adds an input.
    pub fn input(mut self, name: &str, datatype: u64, dims: &[Dim]) -> Self {
        field(&mut self.graph, 11, &value(name, datatype, dims));
        self
    }

    /// Adds an output.
    pub fn output(mut self, name: &str, datatype: u64, dims: &[Dim]) -> Self {
        field(&mut self.graph, 12, &value(name, datatype, dims));
        self
    }

    /// Adds weights of 32-bit floats.
    pub fn floats(self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.weights(name, FLOAT, dims, &data)
    }

    /// Adds a vector of 64-bit integers.
    pub fn integers(self, name: &str, values: &[i64]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.weights(name, INT64, &[values.len() as u64], &data)
    }

    /// Adds a vector of strings.
    pub fn strings(mut self, name: &str, texts: &[&[u8]]) -> Self {
        let mut tensor = Vec::new();
        number(&mut tensor, 1, texts.len() as u64);
        number(&mut tensor, 2, STRING);
        texts.iter().for_each(|text| field(&mut tensor, 6, text));
        field(&mut tensor, 8, name.as_bytes());
        field(&mut self.graph, 5, &tensor);
        self
    }

    fn weights(mut self, name: &str, datatype: u64, dims: &[u64], data: &[u8]) -> Self {
        let mut tensor = Vec::new();
        dims.iter().for_each(|dim| number(&mut tensor, 1, *dim));
        number(&mut tensor, 2, datatype);
        field(&mut tensor, 8, name.as_bytes());
        field(&mut tensor, 9, data);
        field(&mut self.graph, 5, &tensor);
        self
    }

    /// The file.
    pub fn build(mut self) -> Vec<u8> {
        field(&mut self.graph, 2, b"graph");
        let (mut file, mut opset) = (Vec::new(), Vec::new());
        number(&mut opset, 2, 17);
        number(&mut file, 1, 8);
        field(&mut file, 7, &self.graph);
        field(&mut file, 8, &opset);
        file
    }
}

fn value(name: &str, datatype: u64, dims: &[Dim]) -> Vec<u8> {
    let mut shape = Vec::new();
    for dim in dims {
        let mut one = Vec::new();
        match dim {
            Dim::Fixed(size) => number(&mut one, 1, *size),
            Dim::Named(name) => field(&mut one, 2, name.as_bytes()),
        }
        field(&mut shape, 1, &one);
    }
    let (mut tensor, mut kind, mut value) = (Vec::new(), Vec::new(), Vec::new());
    number(&mut tensor, 1, datatype);
    field(&mut tensor, 2, &shape);
    field(&mut kind, 1, &tensor);
    field(&mut value, 1, name.as_bytes());
    field(&mut value, 2, &kind);
    value
}

/// A field of bytes: a string or a message.
fn field(to: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(to, number << 3 | 2);
    varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

fn number(to: &mut Vec<u8>, number: u64, value: u64) {
    varint(to, number << 3);
    varint(to, value);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// `rows = table[indices]`, with a table of 16 rows of 4, and an overflow where an index is 999, which panics in builds
/// that check for it, as that of the tests is.
pub fn brittle() -> Vec<u8> {
    let table: Vec<f32> = (0..64).map(|n| (n / 4 * 10 + n % 4) as f32).collect();
    Onnx::default()
        .node("Pow", &["indices", "ten"], &["large"])
        .node("Div", &["large", "largest"], &["nothing"])
        .node("Add", &["indices", "nothing"], &["place"])
        .node("Gather", &["table", "place"], &["rows"])
        .floats("table", &[16, 4], &table)
        .integers("ten", &[10])
        .integers("largest", &[i64::MAX])
        .input("indices", INT64, &[Dim::Named("N")])
        .output("rows", FLOAT, &[Dim::Named("N"), Dim::Fixed(4)])
        .build()
}

/// `y = x x w`, with x of `[N, side]` and w a square of `side` whose elements are all `element`.
pub fn product(side: u64, element: f32) -> Vec<u8> {
    product_of(Dim::Named("N"), Dim::Named("N"), side, element)
}

/// The same with x of one row, which has no plans for several that would take memory of their own.
pub fn row_product(side: u64, element: f32) -> Vec<u8> {
    product_of(Dim::Fixed(1), Dim::Fixed(1), side, element)
}

/// `y = texts[x]`, with x of `[N]`.
pub fn texts(texts: &[&[u8]]) -> Vec<u8> {
    Onnx::default()
        .node("Gather", &["texts", "x"], &["y"])
        .strings("texts", texts)
        .input("x", INT64, &[Dim::Named("N")])
        .output("y", STRING, &[Dim::Named("N")])
        .build()
}

fn product_of(x: Dim, y: Dim, side: u64, element: f32) -> Vec<u8> {
    Onnx::default()
        .node("MatMul", &["x", "w"], &["y"])
        .floats("w", &[side, side], &vec![element; (side * side) as usize])
        .input("x", FLOAT, &[x, Dim::Fixed(side)])
        .output("y", FLOAT, &[y, Dim::Fixed(side)])
        .build()
}
