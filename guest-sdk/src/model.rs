//! Running models.

use std::cell::OnceCell;

use crate::{Error, Result, Tensor, host};

/// A model of the tenant, ready to run.
///
/// The model lives in the host and is shared; this is a handle on it.
///
/// ```
/// use sandpiper_guest::prelude::*;
///
/// let _model = testing::model("double", |inputs| {
///     let x = inputs.get("x")?.to_f32()?;
///     Ok([("y", Tensor::f32([x.len()], &x.iter().map(|x| x * 2.0).collect::<Vec<_>>()))])
/// });
/// let outputs = Model::named("double")?.run([("x", Tensor::f32([2], &[1.0, 2.0]))])?;
/// assert_eq!(outputs.get("y")?.to_f32()?, [2.0, 4.0]);
/// # Ok::<(), Error>(())
/// ```
pub struct Model {
    source: host::RawModel,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Model")
    }
}

impl Model {
    /// Finds a model: `digits` at the alias that the manifest binds it to, `digits@3` at a version,
    /// `digits@canary` at another alias, `owner/digits` where another tenant shares it.
    ///
    /// # Errors
    ///
    /// 503 `model_not_found` where the function may not see such a model, or there is none.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// assert_eq!(Model::named("nobody").unwrap_err().code(), "model_not_found");
    /// ```
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { source: host::RawModel::load(name)? })
    }

    /// Runs the model once. A second call uses the same handle.
    ///
    /// # Errors
    ///
    /// What the host reports, see [`Error::model`]; a tensor that does not add up is found before.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let _model = testing::model("same", |inputs| Ok([("y", inputs.get("x")?.clone())]));
    /// let model = Model::named("same")?;
    /// assert_eq!(model.run([("x", Tensor::u8([1], b"a"))])?.get("y")?.bytes(), b"a");
    /// assert_eq!(model.run([("x", Tensor::u8([9], b"a"))]).unwrap_err().status(), 502);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn run<N: Into<String>>(
        &self,
        inputs: impl IntoIterator<Item = (N, Tensor)>,
    ) -> Result<Outputs> {
        let inputs: Vec<(String, Tensor)> =
            inputs.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect();
        for (_, tensor) in &inputs {
            tensor.check()?;
        }
        let outputs = self.source.compute(inputs)?;
        Ok(Outputs::new(outputs))
    }
}

/// The inputs of a stand-in are looked up just like the outputs of a model.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn named_tensors(tensors: Vec<(String, Tensor)>) -> Outputs {
    Outputs::new(
        tensors.into_iter().map(|(name, tensor)| (name, host::RawTensor(tensor))).collect(),
    )
}

/// What a model gave, by name. A tensor is copied out of the host when it is first asked for.
///
/// ```
/// # use sandpiper_guest::prelude::*;
/// let _model = testing::model("two", |_| Ok([("a", Tensor::u8([1], b"x")), ("b", Tensor::u8([0], b""))]));
/// let outputs = Model::named("two")?.run::<&str>([])?;
/// assert_eq!(outputs.names().collect::<Vec<_>>(), ["a", "b"]);
/// assert_eq!(outputs.get("b")?.dims(), [0]);
/// assert!(outputs.get("c").is_err());
/// # Ok::<(), Error>(())
/// ```
pub struct Outputs(Vec<Output>);

struct Output {
    name: String,
    source: host::RawTensor,
    tensor: OnceCell<Tensor>,
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.names()).finish()
    }
}

impl Outputs {
    fn new(tensors: Vec<(String, host::RawTensor)>) -> Self {
        let read_later = |(name, source)| Output { name, source, tensor: OnceCell::new() };
        Self(tensors.into_iter().map(read_later).collect())
    }

    /// The output of this name.
    ///
    /// # Errors
    ///
    /// 500 that names the outputs there are.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let _model = testing::model("one", |_| Ok([("label", Tensor::i64([1], &[2]))]));
    /// let outputs = Model::named("one")?.run::<&str>([])?;
    /// assert_eq!(outputs.get("label")?.to_i64()?, [2]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        match self.0.iter().find(|output| output.name == name) {
            Some(output) => Ok(output.read()),
            None => {
                let names: Vec<_> = self.names().collect();
                let names = names.join(", ");
                Err(Error::internal(format!("the model has no output {name}, only: {names}")))
            }
        }
    }

    /// The names, in the model's order.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let _model = testing::model("none", |_| Ok([] as [(String, Tensor); 0]));
    /// assert_eq!(Model::named("none")?.run::<&str>([])?.names().count(), 0);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|output| output.name.as_str())
    }

    /// Names and tensors, in the model's order.
    ///
    /// ```
    /// # use sandpiper_guest::prelude::*;
    /// let _model = testing::model("one", |_| Ok([("label", Tensor::i64([1], &[2]))]));
    /// for (name, tensor) in Model::named("one")?.run::<&str>([])?.iter() {
    ///     assert_eq!((name, tensor.dims()), ("label", &[1][..]));
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|output| (output.name.as_str(), output.read()))
    }
}

impl Output {
    fn read(&self) -> &Tensor {
        self.tensor.get_or_init(|| self.source.read())
    }
}
